"""What users import to prove their own domains.

A kit is only worth its trust if its owner lives by it: everything here also carries our own
suite. Nothing in it needs a service that somebody must start first.
"""

from qntx_es.testing.postgres import PostgresServer, PostgresUnavailable

__all__ = ["PostgresServer", "PostgresUnavailable"]
