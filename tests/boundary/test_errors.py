"""The native module's exception: its fields, and that it survives pickling."""

import pickle  # noqa: TID251 (the round trip is what is tested)

import pytest

from fetchbox import _core


def test_every_field_survives_pickling() -> None:
    error = _core.CoreError("refused", "RATE_LIMITED", "slow down", [{"pointer": "/a", "code": "x", "message": "y"}], 1.5, "job")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, copy.code, copy.message, copy.details, copy.retry_after, copy.job_id) == (
        "refused",
        "RATE_LIMITED",
        "slow down",
        [{"pointer": "/a", "code": "x", "message": "y"}],
        1.5,
        "job",
    )
    assert str(copy) == "slow down"


@pytest.mark.parametrize("options", [b"", b"{", b"[]", b'{"url": 1}', b'{"url": "unix:///x", "name": "n", "role": "king"}'])
def test_bad_options_are_core_errors(options: bytes) -> None:
    with pytest.raises(_core.CoreError) as caught:
        _core.HubClient(options)
    assert caught.value.kind == "config"


def test_an_engine_with_an_unknown_key_says_which() -> None:
    with pytest.raises(_core.CoreError, match="concurency"):
        _core.Engine(b'{"concurency": 3}')


def test_failure_codes_are_named_once_and_classified() -> None:
    codes = _core.failure_codes()
    assert len({name for name, _, _ in codes}) == len(codes)
    assert ("DOWNLOAD_TRUNCATED", True) in {(name, retried) for name, retried, _ in codes}
    assert ("DOWNLOAD_BLOCKED_ADDRESS", False) in {(name, retried) for name, retried, _ in codes}
