"""DynamoDB Local to PostgreSQL: the rates of a copy and of a backlog, the worker's CPU, and both sides equal after each.

scripts/bench-dynamodb starts the servers and calls this with an empty target.
"""

import concurrent.futures
import datetime
import hashlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "demo/bookshop")]
import database  # noqa: E402
import rates  # noqa: E402
import shop  # noqa: E402

NAME = "dynamodb"
TABLE = "accounts"
# Streams have no common order: the last change is not the last to arrive.
ARRIVED = "SELECT count(*) >= %(changes)s / 2 + least(%(changes)s / 2, %(rows)s) FROM accounts WHERE k <= 0"
BATCH = 25
WRITERS = 8
BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


def digest(number):
    return hashlib.md5(str(number).encode()).hexdigest()


def item(number, k):
    """The row of bench/database.py as an item."""
    values = {
        "id": number, "k": k, "c": "-".join([digest(number), digest(number + 1), digest(number + 2), digest(number + 3)[:21]]),
        "pad": f"{digest(number + 4)}-{digest(number + 5)}"[:60], "amount": shop.Number(f"{number % 100000 / 100:.2f}"),
        "active": number % 2 == 1, "created": (BEGIN + datetime.timedelta(seconds=number)).isoformat(),
        "updated": datetime.datetime.now(datetime.timezone.utc).isoformat(),
    }
    if number % 3:
        values["note"] = f"note {number}"
    return shop.attribute(values)["M"]


def put(batch):
    waiting = {TABLE: [{"PutRequest": {"Item": item(number, k)}} for number, k in batch]}
    while waiting:
        waiting = shop.call("BatchWriteItem", RequestItems=waiting).get("UnprocessedItems")


def put_all(items):
    batches = [items[first:first + BATCH] for first in range(0, len(items), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(put, batches))


def equal(what):
    """Every item has its row, and every row its item."""
    cursor = database.target().cursor()
    cursor.execute("SET timezone = 'UTC'")
    cursor.execute("SELECT id, k, c, pad, amount_cents, active, note, created_at, updated_at FROM accounts")
    found = {row[0]: row[1:] for row in cursor}
    wanted = {}
    for values in shop.scan(TABLE):
        text = {name: next(iter(value.values())) for name, value in values.items()}
        moment = datetime.datetime.fromisoformat
        wanted[int(text["id"])] = (
            int(text["k"]), text["c"], text["pad"], round(float(text["amount"]) * 100), text["active"], text.get("note"),
            moment(text["created"]), moment(text["updated"]))
    if found != wanted:
        differ = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
        raise SystemExit(f"bench: {len(differ)} rows differ after {what}, such as {differ[0]}")


def fill(rows):
    shop.call("CreateTable", TableName=TABLE, BillingMode="PAY_PER_REQUEST",
              KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
              AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
              StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"})
    put_all([(number, number) for number in range(1, rows + 1)])


def change(rows, changes):
    put_all([pair for step in range(changes // 2) for pair in ((rows + 1 + step, 0), (1 + step % rows, -1 - step))])


if __name__ == "__main__":
    rates.measure(sys.modules[__name__], __doc__, rows=100_000, changes=50_000, pause=0.25)
