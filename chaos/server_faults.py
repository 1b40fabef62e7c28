"""What happens to the databases: killed, restarted, sessions ended by an administrator, the log rotated."""

import os
import signal
import time

import psycopg2
import pymysql

from lanes import Faults

ANSWER_SECONDS = 120


class ServerFaults(Faults):
    GAP = (12, 30)

    def __init__(self, servers, journal, controls):
        super().__init__("servers", journal, controls)
        self.servers = servers

    def kill(self, draw):
        name, seconds = draw.choice(["mysql80", "mariadb", "pg15", "pg18"]), draw.choice([0, draw.uniform(0, 15)])
        self.injected("database killed (kill -9)", f"for {seconds:.1f} s", name)
        self.servers.kill(name)
        self.rest(seconds)
        self.servers.start(name)

    def restart(self, draw):
        name, seconds = draw.choice(["mysql80", "mariadb", "pg15", "pg18"]), draw.uniform(0, 10)
        self.injected("database stopped and started", f"for {seconds:.1f} s", name)
        self.servers.stop(name)
        self.rest(seconds)
        self.servers.start(name)

    def kill_backend(self, draw):
        """One of PostgreSQL's own processes dies, as by the kernel's hand; it throws all sessions out and recovers."""
        rows = self.servers.ask_target("postgres", "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'cutover %%' ORDER BY pid")
        if not rows:
            return self.skipped("database's session process killed (kill -9)", "no worker is connected", "pg15")
        (pid,) = draw.choice(rows)
        self.injected("database's session process killed (kill -9)", f"pid {pid}", "pg15")
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.servers.ask_target("postgres", "SELECT 1") is None:
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL has not recovered")
            time.sleep(0.2)

    def end_sessions(self, draw):
        """An administrator ends the worker's sessions."""
        name = draw.choice(["mysql80", "mariadb", "pg15", "pg18"])
        try:
            if name in ("pg15", "pg18"):
                rows = self.servers.ask(name, "postgres", "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                                        "WHERE application_name LIKE 'cutover %%'")
                ended = rows[0][0] if rows else 0
            else:
                ended = self.end_source_sessions(name)
        except (pymysql.err.MySQLError, psycopg2.Error, OSError) as error:
            return self.skipped("sessions ended by an administrator", repr(error), name)
        self.injected("sessions ended by an administrator", f"{ended}", name)

    def end_source_sessions(self, name):
        connection = self.servers.source(name)
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = 'cutover'")
            ids = [row[0] for row in cursor.fetchall()]
            for session in ids:
                try:
                    cursor.execute(f"KILL {session}")
                except pymysql.err.MySQLError:
                    pass    # it has ended by itself
        return len(ids)

    def rotate(self, draw):
        name = draw.choice(["mysql80", "mariadb"])
        try:
            connection = self.servers.source(name)
            with connection, connection.cursor() as cursor:
                cursor.execute("FLUSH BINARY LOGS")
        except (pymysql.err.MySQLError, OSError) as error:
            return self.skipped("binary log rotated", repr(error), name)
        self.injected("binary log rotated", "", name)

    def heal(self):
        for name in self.servers.ports:
            self.servers.start(name)

    KINDS = {kill: 10, restart: 4, kill_backend: 3, end_sessions: 4, rotate: 2}
