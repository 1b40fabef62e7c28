"""The database servers of the instance, by way of scripts/services."""

import os
import subprocess

import psycopg2
import pymysql

ADMIN, PASSWORD = "cutover_admin", "admin"


class Servers:
    def __init__(self, journal):
        self.journal = journal
        self.ports = {name: int(os.environ[f"CHAOS_{name.upper()}_PORT"]) for name in ("mysql80", "mariadb", "pg15", "pg18")}

    def services(self, *arguments):
        answer = subprocess.run(["scripts/services", "--instance", "chaos", *arguments], capture_output=True, text=True,
                                stdin=subprocess.DEVNULL, check=False)
        if answer.returncode != 0:
            raise RuntimeError(f"scripts/services {' '.join(arguments)}: {answer.stderr.strip()[-500:]}")

    def kill(self, name):
        self.services("kill", name)

    def stop(self, name):
        self.services("stop", name)

    def start(self, name):
        self.services("start", name)

    def source(self, name, database=None, **options):
        """A session of the administrator on a MySQL or MariaDB server."""
        return pymysql.connect(host="127.0.0.1", port=self.ports[name], user=ADMIN, password=PASSWORD, database=database,
                               charset="utf8mb4", autocommit=True, connect_timeout=10, read_timeout=120, **options)

    def postgres(self, name, database="postgres"):
        """A session of the administrator on a PostgreSQL server; pg15 is everybody's target."""
        connection = psycopg2.connect(host="127.0.0.1", port=self.ports[name], user=ADMIN, password=PASSWORD,
                                      dbname=database, connect_timeout=10, options="-c statement_timeout=120s")
        connection.autocommit = True
        return connection

    def ask_target(self, database, query, *values):
        return self.ask("pg15", database, query, *values)

    def ask(self, name, database, query, *values):
        """The rows of one query; None while the server is away."""
        try:
            connection = self.postgres(name, database)
        except psycopg2.Error:
            return None
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall()
        except psycopg2.Error:
            return None
        finally:
            connection.close()
