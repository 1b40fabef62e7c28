"""Compares every row of the old shop with the new one, knowing nothing of cutover.

Both databases are read in key order, as text where a driver might embellish; what the transforms
say in SQL is said here once more, in Python, from the old schema's documentation. A row that only
one side has is a difference. Exits 0 only if nothing differs.
"""

import json
import time
from datetime import datetime, timezone
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from ipaddress import IPv4Address
from zoneinfo import ZoneInfo

import psycopg2
import pymysql

import shop

BERLIN = ZoneInfo("Europe/Berlin")
EXAMPLES_MAX = 10
FETCH_ROWS = 5_000


# One old value to one new value. None stays None.

def moment(text, zone=timezone.utc):
    """A DATETIME or TIMESTAMP; zero and partly-zero dates are nothing."""
    if text is None or text.startswith("0000") or text[5:7] == "00" or text[8:10] == "00":
        return None
    return datetime.fromisoformat(text if len(text) == 19 else text.ljust(26, "0")).replace(tzinfo=zone)


def berlin(text):
    """Wall-clock time in Berlin. An hour that happens twice, or never, counts as standard time."""
    there = moment(text, BERLIN)
    if there is None:
        return None
    offset = min(there.replace(fold=0).utcoffset(), there.replace(fold=1).utcoffset())
    return there.replace(tzinfo=timezone(offset))


def day(text):
    there = moment(text and text + " 00:00:00")
    return there and there.date()


def cents(text):
    return None if text is None else int((Decimal(text) * 100).quantize(Decimal(1), ROUND_HALF_UP))


def seconds(text):
    if text is None:
        return None
    sign = -1 if text.startswith("-") else 1
    hours, minutes, rest = text.lstrip("-").split(":")
    return sign * (int(hours) * 3600 + int(minutes) * 60 + int(rest))


def truth(text):
    return None if text is None else text != "0"


def number(text):
    return None if text is None else int(text)


def exact(text):
    """A JSON number by its value, never as a float and never equal to true or false."""
    return "number", Decimal(text)


@lru_cache(maxsize=4096)
def document(text):
    """JSON as a tree; null in JSON is not NULL in SQL."""
    if text is None or text == "":
        return None
    return "json", json.loads(text, parse_int=exact, parse_float=exact)


def member(text, name):
    """A string member of a JSON object, as text."""
    tree = document(text)
    return tree[1].get(name) if tree and isinstance(tree[1], dict) else None


USER_STATUS = {"new": "pending", "": "closed", "active": "active", "locked": "locked", "closed": "closed"}
CART_STATUS = {"0": "open", "1": "checkout", "2": "ordered", "3": "abandoned"}


def new_user(row):
    (key, email, name, nickname, born, country, status, active, flags, prefs, balance, since, avatar, notes,
     created, login) = row
    return (
        int(key), email.lower(), name, nickname, day(born), country.upper(), USER_STATUS[status], active != "0",
        bool(flags[0] & 1), bool(flags[0] & 2), prefs.split(",") if prefs else [], cents(balance), number(since) or None,
        avatar, notes, berlin(created), moment(login),
    )


def new_session(row):
    (key, user, status, cart, currency, total, ip, agent, mobile, on_site, created, updated, expires) = row
    return (
        key, int(user) or None, CART_STATUS.get(status, "unknown"), document(cart), member(cart, "coupon"),
        currency.upper(), cents(total), None if ip in (None, "0") else str(IPv4Address(int(ip))), agent, truth(mobile),
        seconds(on_site), berlin(created), berlin(updated), moment(expires),
    )


def new_item(row):
    (key, line, sku, title, kind, quantity, price, discount, options, ref, weight, gift, deleted, added) = row
    if deleted not in (None, "0"):
        return None
    return (
        key, int(line), sku.upper(), title, kind, int(quantity), cents(price), discount and Decimal(discount),
        document(options), member(options, "size"), number(ref), weight and float(weight), gift, berlin(added),
        int(quantity) * cents(price),
    )


# new table -> (old table, its columns, order of its key, mapping, new columns, the new key's length, columns read as
# JSON). Keys are compared by their bytes on both sides.
TABLES = {
    "users": ("users", shop.USER_COLUMNS, "id", new_user,
              "user_id email display_name nickname born_on country status is_active newsletter is_business channels "
              "credit_cents member_since avatar_hash notes signed_up_at last_login_at".split(), 1, ()),
    "cart_sessions": ("cart_sessions", shop.SESSION_COLUMNS, "CAST(session_id AS BINARY)", new_session,
                      "cart_id user_id status cart coupon currency total_cents ip user_agent is_mobile "
                      "seconds_on_site created_at updated_at expires_at".split(), 1, ("cart",)),
    "cart_items_v2": ("cart_items", shop.ITEM_COLUMNS, "CAST(session_id AS BINARY), line_no", new_item,
                      "cart_id line sku title kind quantity unit_price_cents discount_pct options size external_ref "
                      "weight_kg gift_message added_at line_total_cents".split(), 2, ("options",)),
}


def old_rows(table, columns, order, mapping, tally):
    """The old table's rows as the new ones that they should have become, in the order of the key.

    A row that should have become nothing is counted as compared: if the new side has one for it,
    that one is extra.
    """
    # conv={}: every value as the text that the server sent.
    connection = shop.legacy(conv={}, cursorclass=pymysql.cursors.SSCursor)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")
        while rows := cursor.fetchmany(FETCH_ROWS):
            for row in rows:
                expected = mapping(row)
                if expected is None:
                    tally.filtered += 1
                else:
                    yield expected


def new_rows(table, columns, key_columns, json_columns):
    # host() drops the mask that inet shows only for networks; jsonb as text, so that numbers stay exact.
    shown = [f"{c}::text" if c in json_columns else f"host({c})" if c == "ip" else c for c in columns]
    key = ", ".join(f'{c} COLLATE "C"' if c == "cart_id" else c for c in columns[:key_columns])
    places = [columns.index(c) for c in json_columns]
    connection = psycopg2.connect(shop.modern_dsn())
    with connection, connection.cursor("compare") as cursor:
        cursor.itersize = FETCH_ROWS
        with connection.cursor() as settings:
            settings.execute("SET TIME ZONE 'UTC'")
        cursor.execute(f"SELECT {', '.join(shown)} FROM {table} ORDER BY {key}")
        for row in cursor:
            row = list(row)
            for place in places:
                row[place] = document(row[place])
            yield tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)
    connection.close()


class Tally:
    def __init__(self):
        self.compared = self.filtered = self.different = 0
        self.examples = []

    def differs(self, table, key, what):
        self.different += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"  {table} {key}: {what}")


def compare(table, tally):
    old_table, old_columns, order, mapping, columns, key_columns, json_columns = TABLES[table]
    old = old_rows(old_table, old_columns, order, mapping, tally)
    new = new_rows(table, columns, key_columns, json_columns)
    left, right = next(old, None), next(new, None)
    while left is not None or right is not None:
        tally.compared += 1
        left_key = left and left[:key_columns]
        right_key = right and right[:key_columns]
        if right is None or (left is not None and left_key < right_key):
            tally.differs(table, left_key, "is missing in the new shop")
            left = next(old, None)
        elif left is None or right_key < left_key:
            tally.differs(table, right_key, "is only in the new shop")
            right = next(new, None)
        else:
            if left != right:
                names = [c for c, a, b in zip(columns, left, right) if a != b]
                tally.differs(table, left_key, f"differs in {', '.join(names)}")
            left, right = next(old, None), next(new, None)


def main():
    started, total, different, examples = time.monotonic(), 0, 0, []
    for table in TABLES:
        tally = Tally()
        compare(table, tally)
        compared = tally.compared + tally.filtered
        filtered = f", {tally.filtered:,} of them filtered out" if tally.filtered else ""
        print(f"  {table:<14} {compared:>9,} rows compared{filtered}, {tally.different:,} different")
        total, different = total + compared, different + tally.different
        examples += tally.examples
    print(f"rows compared:  {total:,} ({time.monotonic() - started:.0f} s)")
    print(f"rows different: {different:,}")
    for example in examples[:EXAMPLES_MAX]:
        print(example)
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
