"""The domains that are shipped: each one package, independent of the others.

Deleting a folder here removes a domain, and nothing else notices.
"""
