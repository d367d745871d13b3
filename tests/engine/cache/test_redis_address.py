"""A URL gives the address of Redis. No message and no repr shows a password."""

import pytest

from kwise.engine.cache.redis_address import PASSWORD, USERNAME, parse_redis_url
from kwise.engine.config import EngineConfig
from kwise.errors import ConfigError

SECRET = "geheim"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache", "redis://cache:6379/0"),
        ("redis://cache:7000/3", "redis://cache:7000/3"),
        (f"redis://ann:{SECRET}@cache/", "redis://cache:6379/0"),
        (f"redis://:{SECRET}%2F@cache", "redis://cache:6379/0"),
        ("rediss://[::1]:7000/1?ssl_ca_certs=/ca.pem", "rediss://[::1]:7000/1"),
        ("unix:///run/redis%20a/socket", "unix:///run/redis a/socket?db=0"),
        ("unix:///run/redis?db=2", "unix:///run/redis?db=2"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    address = parse_redis_url(url, "--shared-cache", {})
    assert address.shown == shown
    assert SECRET not in repr(address)
    assert address.username is address.password is None
    assert SECRET not in repr(EngineConfig(shared_cache=url))


def test_user_and_password_come_from_the_environment_if_the_url_has_none() -> None:
    environ = {USERNAME: "ann", PASSWORD: SECRET}
    address = parse_redis_url("redis://cache", "--shared-cache", environ)
    assert (address.username, address.password) == ("ann", SECRET)
    assert SECRET not in repr(address)
    address = parse_redis_url("redis://bob:other@cache", "--shared-cache", environ)
    assert (address.username, address.password) == (None, None), "redis-py takes those of the URL"


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"ann:{SECRET}@cache",
        f"http://ann:{SECRET}@cache",
        f"redis://ann:{SECRET}",
        f"redis://ann:{SECRET}/@cache",
        f"redis://ann:{SECRET}#@cache",
        f"redis://:{SECRET}?@cache",
        f"redis://cache?{SECRET}=1",
        f"redis://cache/{SECRET}",
        f"redis://cache?password={SECRET}",
        f"unix:///run/redis?password={SECRET}",
        "redis://cache:0",
        "redis://cache:70000",
        "redis://",
        "unix://",
        "redis://cache?socket_timeout=9",
        "rediss://cache?decode_responses=true",
    ],
)
def test_another_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^--shared-cache: ") as raised:
        EngineConfig(shared_cache=url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [{"shared_cache_ms": 1.0}, {"shared_cache_ttl_s": 0}, {"shared_cache_claim_ms": 0}],
)
def test_an_option_of_the_shared_cache_is_refused_without_one(options: dict[str, float]) -> None:
    flag = "--" + next(iter(options)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"^{flag} is for the shared cache"):
        EngineConfig(**options)  # type: ignore[arg-type]
    EngineConfig(**options, shared_cache="redis://cache")  # type: ignore[arg-type]
