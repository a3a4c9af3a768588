"""What an HTTP status says that is not the service's but of something before it."""

from __future__ import annotations


def is_passing(status: int) -> bool:
    """Whether it tells of trouble that another try may not meet."""
    return status >= 500 or status in (408, 429)


_HEADERS_TOO_LARGE = (
    "are the headers too large for it (nginx: large_client_header_buffers, haproxy: tune.bufsize, "
    "Envoy: max_request_headers_kb)?"
)
_HEADERS = "are the headers right that it wants?"

# The code of the error, and what to do.
_ADVICE = {
    400: (
        "invalid_argument",
        f"is it a port of TLS, so that the URL begins with https://, or {_HEADERS_TOO_LARGE}",
    ),
    401: ("unauthenticated", _HEADERS),
    407: ("unauthenticated", _HEADERS),
    408: ("unavailable", "it gave up reading the request (nginx: client_body_timeout)"),
    413: (
        "resource_exhausted",
        "something before the service takes no request that is so large: raise its limit "
        '(nginx: "client_max_body_size 0;", the service has a limit of its own)',
    ),
    431: ("invalid_argument", _HEADERS_TOO_LARGE),
    502: (
        "unavailable",
        "the proxy there does not reach the service: does it run, has the proxy its address, and "
        "do they speak the same (nginx: proxy_pass http:// or https://, grpc_pass grpc:// or "
        "grpcs://)?",
    ),
    503: (
        "unavailable",
        "no service is ready behind it: ask each for /readyz, and see what its log says",
    ),
    504: (
        "unavailable",
        "the proxy there waited no longer for the service (nginx: proxy_read_timeout and "
        "grpc_read_timeout, haproxy: timeout server, Envoy: the route's timeout)",
    ),
}


def advice_for(status: int, host: str) -> tuple[str, str] | None:
    """The code of the error that tells of a status, and what to do; None: nobody knows."""
    if status == 403:
        return (
            "permission_denied",
            f"{_HEADERS} If it is the service that says so, its log has the reason: does it lack "
            f'"--allowed-hosts {host}"?',
        )
    return _ADVICE.get(status)
