"""Compares every row of the old application with the new one, knowing nothing of cutover.

What the transforms say in SQL is said here once more, in Python. A row that only one side has is a difference. Exits 0 only
if nothing differs.
"""

import json
import time
from datetime import timezone
from decimal import Decimal

from queue_app import COLUMNS, legacy, modern

EXAMPLES_MAX = 10
NO_SPOTIFY, NO_LOGIN, NO_SETTINGS = (None, None, [], None), (None, None, None, None), (3, True, "plain", [])


def document(text):
    return None if text is None else json.loads(text, parse_float=Decimal)


def utc(moment):
    return moment.replace(tzinfo=timezone.utc)


def read(connect, table, columns, documents=()):
    """All rows of a table; JSON as text, so that numbers stay exact."""
    connection = connect()
    with connection, connection.cursor("compare") as cursor:
        cursor.itersize = 5_000
        shown = ", ".join(f"{column}::text" if column in documents else column for column in columns)
        cursor.execute(f"SELECT {shown} FROM {table}")
        for row in cursor:
            row = [document(value) if column in documents else value for column, value in zip(columns, row)]
            yield [bytes(value) if isinstance(value, memoryview) else value for value in row]
    connection.close()


def old(table, *documents):
    return read(legacy, table, COLUMNS[table].split(), documents)


def accounts():
    spotify = {row[0]: tuple(row[1:]) for row in old("spotify_auth")}
    logins = {row[0]: tuple(row[1:]) for row in old("oauth_sessions", "claims")}
    for key, email, name, secret, deleted, created in old("admins"):
        if deleted is None:
            yield (key,), (email.lower(), name, secret, utc(created), *spotify.get(key, NO_SPOTIFY), *logins.get(key, NO_LOGIN))


def events():
    chosen = {}
    for key, limits, theme, blocked in old("event_settings", "limits"):
        chosen[key] = (limits.get("per_guest", 3), limits.get("explicit", True), theme or "plain", blocked or [])
    for key, title, venue, opens, closed in old("settings"):
        yield (key,), (title, venue, opens, not closed, *chosen.get(key, NO_SETTINGS))


def requests():
    for key, event, title, artist, guest, state, votes, tip, lyrics, at in old("requests"):
        yield (key,), (event, title, artist or None, guest, state, votes, None if tip is None else int(tip * 100), lyrics, utc(at))


def notifications():
    for key, request, kind, payload, recipients, sent in old("notifications", "payload"):
        for recipient in recipients:
            yield (key, recipient), (request, kind, payload.get("message"), payload, sent)


# new table -> (what it should hold, how many columns its key has, its columns, those of them that are JSON)
TABLES = {
    "accounts": (accounts, 1, "account_id email name password_hash created_at spotify_access_token spotify_refresh_token spotify_scopes "
                 "spotify_expires_at login_provider login_subject login_claims last_seen_at", ("login_claims",)),
    "events": (events, 1, "event_id title venue opens_at is_open requests_per_guest allows_explicit theme blocked_artists", ()),
    "requests": (requests, 1, "request_id event_id title artist requested_by state votes tip_cents lyrics requested_at", ()),
    "notifications": (notifications, 2, "notification_id recipient request_id kind message payload sent_at", ("payload",)),
}


def compare(table):
    """How many rows were compared, and what differs."""
    expected_rows, width, columns, documents = TABLES[table]
    columns = columns.split()
    expected = dict(expected_rows())
    compared, differences = len(expected), []
    for row in read(modern, table, columns, documents):
        key, found = tuple(row[:width]), tuple(row[width:])
        wanted = expected.pop(key, None)
        if wanted is None:
            compared += 1
            differences.append(f"  {table} {key}: is only in the new application")
        elif wanted != found:
            names = [column for column, a, b in zip(columns[width:], wanted, found) if a != b]
            differences.append(f"  {table} {key}: differs in {', '.join(names)}")
    differences += [f"  {table} {key}: is missing in the new application" for key in expected]
    return compared, differences


def main():
    started, total, different = time.monotonic(), 0, []
    for table in TABLES:
        compared, differences = compare(table)
        print(f"  {table:<14} {compared:>9,} rows compared, {len(differences):,} different")
        total, different = total + compared, different + differences
    print(f"rows compared:  {total:,} ({time.monotonic() - started:.0f} s)")
    print(f"rows different: {len(different):,}")
    for example in different[:EXAMPLES_MAX]:
        print(example)
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
