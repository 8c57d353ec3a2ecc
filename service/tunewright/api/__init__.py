"""The HTTP side: routers, wire schemas, errors, and the gateway that carries generations. Imports no torch."""
