"""The old shop's rows, and how the demo's programs reach its two databases.

Everything is drawn from a random.Random that the caller seeds, so that a run can be repeated. Keys
of seeded rows are functions of an index: the load generator finds them without asking. None of
this, nor anything else in this folder, uses cutover's code.
"""

import hashlib
import json
import os

import pymysql

USERS = 40_000
SESSIONS = 90_000
SECOND_SHOP = 4_000_000_000

USER_COLUMNS = (
    "id email name nickname birth_date country status is_active flags prefs balance member_since "
    "avatar_hash notes created last_login"
).split()
SESSION_COLUMNS = (
    "session_id user_id status cart_data currency total ip user_agent is_mobile time_on_site "
    "created updated expires"
).split()
ITEM_COLUMNS = (
    "session_id line_no sku title kind qty price discount_pct options external_ref weight_kg "
    "gift_message is_deleted added"
).split()

FIRST = ["Anna", "Jürgen", "Zoë", "Þór", "李", "Олена", "محمد", "Ngọc", "José", "Ümit", "O'Neil", "👩‍🚀 Ada"]
LAST = ["Müller", "Lund", "García", "Øster", "小明", "Шевченко", "de la Croix", "Smith\\Jones", "İnan", "Nguyễn"]
NICKNAMES = ["Spaß", "café", "€uro", "“quoted”", "tab\tbed", "back\\slash", "Ærø", "o'clock", "\u0081 odd"]
NOTES = [
    "VIP — call first 📞", "line one\nline two\r\nline three", "says \"hi\" & 'bye'", "", "  spaces  ",
    "{\"not\": \"parsed\"}", "ключ", "100% \\N NULL null", "🛒🛒🛒",
]
AGENTS = ["Mozilla/5.0 (Windows NT 6.1)", "Opera/9.80", "curl/7.38 é", "", "Safari — “old”"]
TITLES = ["Kaffeetasse", "Tee 紅茶", "Büro-Stuhl", "Lámpara", "T-Shirt 🦀", "Gutschein 50 €", "Свеча", "Ribbon \\ roll"]
GIFTS = ["Alles Gute!", "Für Zoë", "Bon anniversaire, chérie", "3 × €", "  ", ""]
# Wall-clock times that happen twice or never in Berlin, and days beside them.
ODD_TIMES = ["2019-10-27 02:30:00", "2021-03-28 02:15:00", "2020-10-25 02:59:59", "2016-02-29 23:59:59", "2024-03-31 02:00:00"]
ZERO_TIME = "0000-00-00 00:00:00"


def legacy(database="shop", **options):
    """A connection to the old shop as its application makes one: lax mode, READ COMMITTED."""
    connection = pymysql.connect(
        host=os.environ.get("LEGACY_HOST", "127.0.0.1"), port=int(os.environ["LEGACY_PORT"]),
        user=os.environ.get("LEGACY_USER", "shop"), password=os.environ["LEGACY_PASSWORD"],
        database=database, charset="utf8mb4", autocommit=False, **options)
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_mode = 'NO_ENGINE_SUBSTITUTION'")
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("SET SESSION time_zone = '+00:00'")
    return connection


def modern_dsn(dbname="shop"):
    return (f"host={os.environ.get('MODERN_HOST', '127.0.0.1')} port={int(os.environ['MODERN_PORT'])} user={os.environ.get('MODERN_USER', 'shop')} "
            f"password={os.environ['MODERN_PASSWORD']} dbname={dbname}")


def user_id(index):
    return SECOND_SHOP + index if index % 10 == 9 else index + 1


def session_id(seed, index):
    return hashlib.md5(f"{seed}:{index}".encode()).hexdigest()


def lines_of(index):
    """How many lines the seeded session has."""
    return (index * 7) % 5


def maybe(random, share, value, otherwise=None):
    return value if random.random() < share else otherwise


def wall_clock(random, fraction=False):
    if random.random() < 0.01:
        return random.choice(ODD_TIMES)
    text = (f"{random.randint(2009, 2026)}-{random.randint(1, 12):02}-{random.randint(1, 28):02} "
            f"{random.randint(0, 23):02}:{random.randint(0, 59):02}:{random.randint(0, 59):02}")
    return f"{text}.{random.randint(0, 999999):06}" if fraction else text


def money(random, digits, scale):
    return f"{random.randint(0, 10 ** digits)}.{random.randint(0, 10 ** scale - 1):0{scale}}"


def user(random, key, email):
    draw = random.random()
    return (
        key, email, f"{random.choice(FIRST)} {random.choice(LAST)}", maybe(random, 0.4, random.choice(NICKNAMES)),
        "0000-00-00" if draw < 0.03 else "1980-00-00" if draw < 0.04 else maybe(random, 0.6, wall_clock(random)[:10]),
        random.choice(["DE", "at", "CH", "fr", "US"]),
        random.choice(["new", "active", "active", "active", "locked", "closed"]) if draw < 0.99 else "deleted?",
        random.randint(0, 1), bytes([random.randint(0, 255)]),
        ",".join(p for p in ("mail", "sms", "push") if random.random() < 0.4),
        ("-" if draw > 0.9 else "") + money(random, 5, 4), maybe(random, 0.7, random.choice([0, 1999, 2014, 2026])),
        maybe(random, 0.3, random.getrandbits(104).to_bytes(13, "big") + b"\x00\x00\x00"), maybe(random, 0.2, random.choice(NOTES)),
        ZERO_TIME if draw < 0.02 else wall_clock(random),
        maybe(random, 0.7, wall_clock(random)),
    )


def cart_json(random):
    """The cart as the PHP of each era wrote it."""
    draw = random.random()
    if draw < 0.10:
        return None
    if draw < 0.15:
        return ""
    if draw < 0.20:
        return random.choice(["[]", "{}", "null", '{"a": 1, "a": 2}'])
    cart = {
        "v": random.randint(1, 4),
        "coupon": maybe(random, 0.3, random.choice(["SOMMER10", "été", "👍", "", "10%"])),
        "lines": [{"sku": f"SKU-{random.randint(1, 500)}", "q": random.randint(1, 9)} for _ in range(random.randint(0, 3))],
        "note": random.choice(NOTES),
        "paid": random.random() < 0.5,
    }
    if draw < 0.4:
        del cart["coupon"]
    text = json.dumps(cart, ensure_ascii=draw < 0.6, separators=(",", ":") if draw < 0.8 else (", ", " : "))
    return f'{text[:-1]},"sum":{random.randint(0, 999)}.{random.randint(0, 99):02}0,"id":{random.getrandbits(80)}}}'


def session(random, key, owner):
    draw = random.random()
    return (
        key, owner, random.choice([0, 0, 0, 1, 2, 3]) if draw < 0.99 else -1, cart_json(random),
        random.choice(["EUR", "eur", "CHF"]), maybe(random, 0.9, money(random, 4, 2)),
        maybe(random, 0.8, random.choice([0, random.getrandbits(32)])), maybe(random, 0.8, random.choice(AGENTS)),
        maybe(random, 0.8, random.randint(0, 1)),
        maybe(random, 0.7, random.choice(["-00:00:07", "00:00:00", f"{random.randint(0, 120)}:{random.randint(0, 59)}:01"])),
        wall_clock(random), wall_clock(random, fraction=True),
        ZERO_TIME if draw < 0.01 else maybe(random, 0.7, wall_clock(random)),
    )


def options_json(random):
    if random.random() < 0.4:
        return None
    options = {"size": random.choice(["S", "M", "XL", None]), "gift": random.random() < 0.5, "text": random.choice(TITLES)}
    number = random.choice(["1.10", "0.1", "1e-7", "18446744073709551615", "-9223372036854775808", "2.5e20", "1.0"])
    return f'{json.dumps(options, ensure_ascii=False)[:-1]}, "n": {number}}}'


def item(random, key, line):
    draw = random.random()
    return (
        key, line, f"sku-{random.randint(1, 500)}", random.choice(TITLES), random.choice(["physical", "digital", "voucher"]),
        random.randint(1, 9) if draw < 0.99 else 16_777_215, money(random, 3, 2), maybe(random, 0.3, money(random, 1, 2)),
        options_json(random), maybe(random, 0.5, random.getrandbits(64)), maybe(random, 0.5, random.random() * 30),
        maybe(random, 0.1, random.choice(GIFTS)), random.choice([None, 0, 0, 0, 1]),
        "2012-00-00 00:00:00" if draw < 0.005 else wall_clock(random),
    )


def insert(table, columns, verb="INSERT"):
    """The statement that pymysql's executemany sends as one multi-row insert."""
    return f"{verb} INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"
