"""The request-queue application's two databases: connections, and rows that are drawn the same way by seed and load."""

import json
import os
import random
from datetime import datetime, timedelta, timezone

import psycopg2

ADMINS, EVENTS, REQUESTS, NOTIFICATIONS = 20_000, 4_000, 60_000, 40_000
START = datetime(2024, 5, 1, tzinfo=timezone.utc)
ARTISTS = ["Björk", "Sigur Rós", "Motörhead", "Beyoncé", "", "AC/DC", "椎名林檎", "O'Jays", None]
SCOPES = ["playlist-read", "playlist-modify", "user-top-read", "streaming"]
STATES = ["new", "accepted", "played", "declined"]
LETTERS = "abcdefghijklmnopqrstuvwxyz äöü\n\"'\\"

COLUMNS = {
    "admins": "id email name password_hash deleted_at created_at",
    "spotify_auth": "admin_id access_token refresh_token scopes expires_at",
    "oauth_sessions": "admin_id provider subject claims last_seen",
    "settings": "event_id title venue opens_at closed",
    "event_settings": "event_id limits theme blocked_artists",
    "requests": "id event_id title artist requested_by state votes tip lyrics requested_at",
    "notifications": "id request_id kind payload recipients sent_at",
}


def legacy():
    return psycopg2.connect(f"postgresql://queue:{os.environ['LEGACY_PASSWORD']}@127.0.0.1:{os.environ['LEGACY_PORT']}/queue")


def modern():
    return psycopg2.connect(f"postgresql://queue:{os.environ['MODERN_PASSWORD']}@127.0.0.1:{os.environ['MODERN_PORT']}/queue")


def insert(table):
    columns = COLUMNS[table].split()
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))}) ON CONFLICT DO NOTHING"


class Rows:
    """Draws rows, in the order of COLUMNS."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def moment(self):
        return START + timedelta(microseconds=self.random.randrange(10**13))

    def maybe(self, share, value):
        return value if self.random.random() < share else None

    def text(self, length):
        return "".join(self.random.choices(LETTERS, k=length))

    def admin(self, key):
        r = self.random
        deleted = self.maybe(0.05, self.moment().replace(tzinfo=None))
        return (key, f"Admin{key}.{r.randrange(10**6)}@Example.ORG", self.text(12), r.randbytes(20), deleted,
                self.moment().replace(tzinfo=None))

    def spotify(self, key):
        r = self.random
        return (key, f"{r.getrandbits(128):032x}", self.maybe(0.8, f"{r.getrandbits(64):016x}"),
                r.sample(SCOPES, r.randrange(len(SCOPES))), self.moment())

    def session(self, key):
        r = self.random
        claims = {"sub": r.randrange(10**15), "ratio": r.random(), "roles": r.sample(["dj", "host", "guest"], 2), "none": None}
        return key, r.choice(["google", "apple", "local"]), f"{key}-{r.getrandbits(32)}", json.dumps(claims), self.maybe(0.7, self.moment())

    def settings(self, key):
        return key, f"Party {key} {self.text(6)}", self.maybe(0.7, self.text(10)), self.maybe(0.8, self.moment()), self.random.random() < 0.2

    def event_settings(self, key):
        r = self.random
        limits = {name: value for name, value in (("per_guest", r.randrange(1, 9)), ("explicit", r.random() < 0.5)) if r.random() < 0.7}
        blocked = self.maybe(0.6, [artist for artist in r.sample(ARTISTS[:4], r.randrange(4))])
        return key, json.dumps(limits), self.maybe(0.5, r.choice(["dark", "neon"])), blocked

    def request(self, key, event):
        r = self.random
        tip = self.maybe(0.4, f"{r.randrange(10**6)}.{r.randrange(100):02d}")
        # Some go out of line: PostgreSQL does not repeat those in a change that leaves them as they are.
        lyrics = self.maybe(0.3, self.text(r.choice([40, 400, 6_000])))
        return (key, event, self.text(15), r.choice(ARTISTS), f"guest{r.randrange(5000)}", r.choice(STATES), r.randrange(40), tip,
                lyrics, self.moment().replace(tzinfo=None))

    def recipients(self):
        return [f"guest{n}" for n in self.random.sample(range(5000), self.random.randrange(5))]

    def notification(self, key, request):
        r = self.random
        payload = {"message": self.text(20), "n": r.randrange(10**6)} if r.random() < 0.8 else {"n": r.random()}
        return key, request, r.choice(["played", "declined"]), json.dumps(payload), self.recipients(), self.maybe(0.8, self.moment())
