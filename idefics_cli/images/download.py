"""Download of pictures, with limits on bytes, redirects and time."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import parse_url

from idefics_cli import __version__
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, too_many_bytes
from idefics_cli.core.text import abbreviated
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import ImageLimits
from idefics_cli.core.units import counted
from idefics_cli.images.addresses import (
    WEB_PORTS,
    AddressPolicy,
    LookUp,
    RefusedAddressError,
    is_public,
    look_up,
)
from idefics_cli.images.connections import Connections, PrivateAddressError

# A whole download may take this many times `timeout_seconds`, which is the limit of one read.
_DEADLINE_READS = 10
_CHUNK_BYTES = 16_384
_HEADERS = {
    # Wikimedia and other servers refuse clients without a name.
    "User-Agent": f"idefics-cli/{__version__}",
    "Accept": "image/avif,image/webp,image/*;q=0.9,*/*;q=0.5",
    # The server must not compress its reply: pictures are compressed already, and a compressed
    # reply would hide its real size.
    "Accept-Encoding": "identity",
}
_HINTS = {
    401: "the server wants a login: download the picture and give the file",
    403: "the server refuses programs: download the picture and give the file",
    404: "check the address",
    410: "check the address",
    429: "the server wants fewer requests: wait a while",
}


def download(
    url: str,
    limits: ImageLimits,
    *,
    is_public: Callable[[str], bool] = is_public,
    look_up: LookUp = look_up,
    ports: frozenset[int] = WEB_PORTS,
) -> bytes:
    """Return the bytes at *url*.

    A server on the internet may redirect to another one, but not to this machine or its network:
    the address may be from a list that somebody else wrote.

    Args:
        url: An address. If `limits.addresses` is "any", it may be that of a server in the local
            network.
        limits: Limits of bytes, redirects and time; and which servers may be asked.
        is_public: Whether an IP address belongs to a server on the internet.
        look_up: Finds the addresses of a host, unless `limits.addresses` is "any".
        ports: The ports of public servers, unless `limits.addresses` is "any".

    Raises:
        ImageError: Of the kind `fetch_failed`, or `too_large` if there are more than
            `limits.max_bytes` bytes.
    """
    seconds = limits.download_seconds or limits.timeout_seconds * _DEADLINE_READS
    connections = Connections(is_public)
    policy = None
    if limits.addresses != "any":
        policy = AddressPolicy(_listed_hosts(limits), is_public, look_up, ports)
    # A timeout of requests limits only one wait, so a server that sends a byte now and then could
    # block the caller forever. The worker ends when its connections are closed.
    result = in_background(lambda: _fetch(url, limits, connections, policy), name="image-download")
    try:
        return result.result(timeout=seconds)
    except TimeoutError:
        reason = f"took longer than {counted(float(seconds), 'second')}"
        raise _failed(url, reason, "raise --timeout-seconds") from None
    finally:
        connections.close()


def _listed_hosts(limits: ImageLimits) -> frozenset[str] | None:
    return limits.addresses if isinstance(limits.addresses, frozenset) else None


def _fetch(
    url: str, limits: ImageLimits, connections: Connections, policy: AddressPolicy | None
) -> bytes:
    try:
        return _follow(url, limits, connections, policy)
    except RefusedAddressError as error:
        raise _failed(url, str(error), "give a public address, without a user name") from error
    except PrivateAddressError as error:
        raise _failed(
            url,
            f"it redirects into the private network, to {error.address}",
            "if you trust it, give the address to which it redirects",
        ) from error
    except requests.Timeout as error:
        raise _timed_out(url, limits) from error
    except requests.exceptions.SSLError as error:
        # requests wraps the error of the TLS library, and keeps only its text.
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise _failed(url, "its certificate cannot be trusted", "check the address") from error
        reason = "there is no secure connection to it"
        raise _failed(url, reason, "check whether the address begins with `http://`") from error
    except requests.ConnectionError as error:
        # requests raises this error also for a read timeout in the middle of a body.
        if any(isinstance(cause, ReadTimeoutError) for cause in error.args):
            raise _timed_out(url, limits) from error
        raise _failed(
            url,
            f"cannot connect to `{abbreviated(_host(url))}`",
            "check the address and the network",
        ) from error
    except (
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
    ) as e:
        raise _failed(url, "the connection broke off", "try again") from e
    # ValueError: an invalid address, from requests or from Python's IDNA codec.
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise _failed(url, "not a valid address", "check the address") from error


def _follow(
    url: str, limits: ImageLimits, connections: Connections, policy: AddressPolicy | None
) -> bytes:
    current = url
    with requests.Session() as session:
        # Without a policy, the proxies and the .netrc of the user apply, as in other programs.
        session.trust_env = policy is None
        for scheme in ("http://", "https://"):
            session.mount(scheme, connections.adapter(policy))
        for _ in range(limits.max_redirects + 1):
            if policy is not None and parse_url(current).auth is not None:
                raise RefusedAddressError("the address has a user name")
            with session.get(
                current,
                headers=_HEADERS,
                timeout=limits.timeout_seconds,
                stream=True,
                allow_redirects=False,
            ) as response:
                target = session.get_redirect_target(response)
                if target is None:
                    return _body(url, response, limits, connections)
            current = _next(url, current, target)
    raise _failed(
        url,
        f"more than {counted(limits.max_redirects, 'redirect')}",
        "give the address where they end",
    )


def _next(url: str, current: str, target: str) -> str:
    joined = urljoin(current, target)
    if urlsplit(joined).scheme.lower() not in ("http", "https"):
        raise _failed(
            url, f"it redirects to `{describe_source(joined)}`", "only http(s) is followed"
        )
    return joined


def _body(
    url: str, response: requests.Response, limits: ImageLimits, connections: Connections
) -> bytes:
    if response.status_code != 200:
        status = f"the server answers {response.status_code} {response.reason}".strip()
        hint = "try again later" if response.status_code >= 500 else "check the address"
        raise _failed(url, status, _HINTS.get(response.status_code, hint))
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise too_many_bytes(url, limits)
    body = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        body += chunk
        if len(body) > limits.max_bytes:
            raise too_many_bytes(url, limits)
        if connections.is_closed.is_set():
            break
    return bytes(body)


def _host(url: str) -> str:
    """Return the host of *url*, with its port if there is one, without a user name."""
    return urlsplit(url).netloc.rpartition("@")[2] or url


def _timed_out(url: str, limits: ImageLimits) -> ImageError:
    return _failed(
        url,
        f"no answer within {counted(float(limits.timeout_seconds), 'second')}",
        "raise --timeout-seconds",
    )


def _failed(url: str, reason: str, hint: str) -> ImageError:
    # The reason may contain text from the server, so it is abbreviated.
    message = f"cannot fetch `{describe_source(url)}`: {abbreviated(reason)}"
    return ImageError(message, kind="fetch_failed", hint=hint)
