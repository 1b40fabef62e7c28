"""Compares every item of the old bookshop with the new one's rows, knowing nothing of cutover.

What the transforms say in SQL is said here once more, in Python. A row that only one side has is a difference.
"""

import base64
import json
import os
from datetime import datetime, timezone
from decimal import Decimal, ROUND_HALF_UP

import psycopg2
import psycopg2.extras

import shop

EXAMPLES_MAX = 10


def value(attribute):
    (kind, content), = attribute.items()
    match kind:
        case "NULL": return None
        case "N": return Decimal(content)
        case "B": return base64.b64decode(content)
        case "SS": return sorted(content)
        case "L": return [value(element) for element in content]
        case "M": return {name: value(element) for name, element in content.items()}
        case _: return content


def items(table):
    for item in shop.scan(table):
        yield {name: value(attribute) for name, attribute in item.items()}


def cents(amount):
    return int((amount * 100).quantize(Decimal(1), ROUND_HALF_UP))


def books():
    for item in items("Books"):
        price, authors = item.get("price", Decimal(0)), item.get("authors", [])
        amount, currency = (price["amount"], price["currency"]) if isinstance(price, dict) else (price, "EUR")
        known = {"isbn", "title", "authors", "price", "pages", "tags", "cover", "inPrint"}
        details = {name: content for name, content in item.items() if name not in known}
        yield (item["isbn"], item["title"], [authors] if isinstance(authors, str) else authors, cents(amount), currency,
               item.get("pages"), item.get("tags", []), item.get("cover"), item.get("inPrint", True), details)


def users():
    for item in items("Users"):
        joined = item.get("joinedAt")
        yield (item["userId"], item["email"].lower(), item.get("name", ""), joined and datetime.fromisoformat(joined),
               item.get("newsletter", False), item.get("address", {}).get("city"))


def orders():
    for item in items("Orders"):
        status = item.get("status")
        yield (item["orderId"], item["userId"], status if status in ("placed", "paid", "shipped", "cancelled") else "unknown",
               datetime.fromtimestamp(int(item["placedAt"]), timezone.utc), item.get("note", ""))


def order_items():
    for item in items("Orders"):
        for number, line in enumerate(item["items"], 1):
            yield (item["orderId"], number, line["isbn"], line.get("quantity", 1), cents(line["price"]))


COLUMNS = {
    books: ("books", 1, "isbn, title, authors, price_cents, currency, pages, tags, cover, is_in_print, details"),
    users: ("users", 1, "user_id, email, name, joined_at, newsletter, city"),
    orders: ("orders", 1, "order_id, user_id, status::text, placed_at, note"),
    order_items: ("order_items", 2, "order_id, line, isbn, quantity, price_cents"),
}


def plain(cell):
    return bytes(cell) if isinstance(cell, memoryview) else cell


def rows_of(cursor, table, columns):
    cursor.execute(f"SELECT {columns} FROM {table}")
    return (tuple(map(plain, row)) for row in cursor)


def compare(connection):
    """How many rows were compared, and how many differ."""
    compared = different = 0
    for source, (table, keys, columns) in COLUMNS.items():
        wanted = {row[:keys]: row for row in source()}
        with connection.cursor() as cursor:
            found = {row[:keys]: row for row in rows_of(cursor, table, columns)}
        wrong = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
        for key in sorted(wrong)[:EXAMPLES_MAX]:
            print(f"{table} {key}: the old shop has {wanted.get(key)}, the new one {found.get(key)}")
        print(f"{table}: {len(wanted):,} rows, {len(wrong):,} different")
        compared, different = compared + len(wanted), different + len(wrong)
    return compared, different


def carts_are_untouched():
    """What is not moved is as it was seeded."""
    found = {item["cartId"]: item for item in items("Carts")}
    wanted = {f"c-{number}": {"cartId": f"c-{number}", "isbn": shop.isbn(number)} for number in range(shop.CARTS)}
    stream = shop.call("DescribeTable", TableName="Carts")["Table"].get("StreamSpecification")
    print(f"carts, which stay: {len(found):,} items, {'as they were' if found == wanted and not stream else 'TOUCHED'}")
    return found == wanted and not stream


def main():
    connection = psycopg2.connect(host="127.0.0.1", port=os.environ["MODERN_PORT"], dbname="bookshop", user="cutover",
                                  password=os.environ["MODERN_PASSWORD"])
    # Numbers inside of JSON keep all their digits.
    psycopg2.extras.register_default_jsonb(connection, loads=lambda text: json.loads(text, parse_float=Decimal, parse_int=Decimal))
    compared, different = compare(connection)
    print(f"{compared:,} rows compared, {different:,} different")
    raise SystemExit(0 if carts_are_untouched() and compared and not different else 1)


if __name__ == "__main__":
    main()
