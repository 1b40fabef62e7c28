"""The old bookshop: a client of DynamoDB that speaks its JSON over HTTP, the items, and what customers do with them."""

import base64
import json
import os
import random
import re
import urllib.error
import urllib.request

ENDPOINT = re.search(r"endpoint=(http://[^&]+)", os.environ["BOOKSHOP_SOURCE"]).group(1)
HEADERS = {
    "Content-Type": "application/x-amz-json-1.0",
    # DynamoDB Local checks that a request is signed, not by whom.
    "Authorization": "AWS4-HMAC-SHA256 Credential=bookshop/20260101/us-east-1/dynamodb/aws4_request, "
                     "SignedHeaders=host, Signature=0",
}
TABLES = {"Books": "isbn", "Users": "userId", "Orders": "orderId", "Carts": "cartId"}
BOOKS, USERS, ORDERS, CARTS = 6_000, 4_000, 8_000, 500


def call(operation, **request):
    headers = HEADERS | {"X-Amz-Target": f"DynamoDB_20120810.{operation}"}
    with urllib.request.urlopen(urllib.request.Request(ENDPOINT, json.dumps(request).encode(), headers), timeout=30) as answer:
        return json.load(answer)


def attribute(value):
    """A Python value as DynamoDB's JSON: a set is a string set, a float never a number."""
    match value:
        case None: return {"NULL": True}
        case bool(): return {"BOOL": value}
        case int(): return {"N": str(value)}
        case Number(): return {"N": str(value)}
        case str(): return {"S": value}
        case bytes(): return {"B": base64.b64encode(value).decode()}
        case set(): return {"SS": sorted(value)}
        case list(): return {"L": [attribute(element) for element in value]}
        case dict(): return {"M": {name: attribute(element) for name, element in value.items()}}


class Number(str):
    """A number as it is spelled."""


def put(table, item):
    call("PutItem", TableName=table, Item=attribute(item)["M"])


def delete(table, key):
    call("DeleteItem", TableName=table, Key={TABLES[table]: {"S": key}})


def scan(table):
    """Every item, in DynamoDB's JSON."""
    after = {}
    while True:
        answer = call("Scan", TableName=table, ConsistentRead=True, **after)
        yield from answer["Items"]
        if "LastEvaluatedKey" not in answer:
            return
        after = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}


def isbn(number): return f"978{number:010d}"
def user_id(number): return f"u-{number}"
def order_id(number): return f"o-{number}"
def price(draw): return Number(f"{draw.randint(1, 9_999) / 100:.2f}")


def book(draw, number):
    item = {"isbn": isbn(number), "title": f"The {draw.choice(['Quiet', 'Second', 'Última', 'große'])} Book {number}"}
    item["price"] = draw.choice([price(draw), {"amount": price(draw), "currency": draw.choice(["EUR", "CHF"])}])
    if draw.random() < 0.9: item["authors"] = draw.choice(["A. Writer", ["B. Writer", "C. O'Writer"], []])
    if draw.random() < 0.7: item["pages"] = draw.randint(20, 2_000)
    if draw.random() < 0.5: item["tags"] = set(draw.sample(["novel", "poetry", "crime", "été"], 2))
    if draw.random() < 0.2: item["cover"] = draw.randbytes(16)
    if draw.random() < 0.3: item["inPrint"] = draw.random() < 0.5
    if draw.random() < 0.3: item["weight"] = Number("0.12345678901234567890123456789012345678")
    if draw.random() < 0.2: item["subtitle"] = draw.choice(["", None, "or: \"quoted\" \\ and more"])
    return item


def user(draw, number):
    item = {"userId": user_id(number), "email": f"User{number}@Example.org"}
    if draw.random() < 0.9: item["name"] = draw.choice(["Ann", "Björn", "", "Zoë"])
    if draw.random() < 0.8: item["joinedAt"] = f"20{draw.randint(10, 26)}-0{draw.randint(1, 9)}-11T10:20:30.123Z"
    if draw.random() < 0.5: item["newsletter"] = draw.random() < 0.5
    if draw.random() < 0.6: item["address"] = {"city": draw.choice(["Bern", "Kyiv", ""]), "zip": Number("8000")}
    return item


def order(draw, number):
    lines = [{"isbn": isbn(draw.randrange(BOOKS)), "price": price(draw)} for _ in range(draw.randint(0, 5))]
    for line in lines:
        if draw.random() < 0.7: line["quantity"] = draw.randint(1, 9)
    item = {"orderId": order_id(number), "userId": user_id(draw.randrange(USERS)), "items": lines,
            "placedAt": draw.randint(1_500_000_000, 1_790_000_000)}
    if draw.random() < 0.9: item["status"] = draw.choice(["placed", "paid", "shipped", "cancelled", "lost?"])
    if draw.random() < 0.3: item["note"] = draw.choice(["", "gift", "before \u2603"])
    return item


def seed(draw):
    """Makes the tables anew, with streams, and fills them."""
    for table, key in TABLES.items():
        try:
            call("DeleteTable", TableName=table)
        except urllib.error.HTTPError:
            pass  # There was none.
        stream = {} if table == "Carts" else {"StreamSpecification": {
            "StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}}
        call("CreateTable", TableName=table, BillingMode="PAY_PER_REQUEST", **stream,
             KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
             AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}])
    for table, make, count in [("Books", book, BOOKS), ("Users", user, USERS), ("Orders", order, ORDERS)]:
        items = [attribute(make(draw, number))["M"] for number in range(count)]
        for start in range(0, count, 25):
            call("BatchWriteItem", RequestItems={table: [{"PutRequest": {"Item": item}} for item in items[start:start + 25]]})
    for number in range(CARTS):
        put("Carts", {"cartId": f"c-{number}", "isbn": isbn(number)})


class Customers:
    """What goes on in the shop: books and users are never removed while an order may name them."""

    def __init__(self, draw):
        self.draw, self.orders = draw, ORDERS
        self.changes = 0

    def act(self):
        draw, kind = self.draw, self.draw.random()
        if kind < 0.25:
            put("Books", book(draw, draw.randrange(BOOKS)))
        elif kind < 0.40:
            put("Users", user(draw, draw.randrange(USERS)))
        elif kind < 0.60:
            self.orders += 1
            put("Orders", order(draw, self.orders))
        elif kind < 0.90:
            put("Orders", order(draw, draw.randrange(self.orders)))
        else:
            delete("Orders", order_id(draw.randrange(self.orders)))
        self.changes += 1
