import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from appliance.errors import ArtefactMissing, IntegrityError, KeyUnavailable, UsageError
from appliance.store import keyslots
from appliance.store.keys import (
    KeyRing,
    RootKey,
    body_private_key,
    body_public_key,
    fingerprint_key,
    read_body_public_key,
    write_body_public_key,
)
from appliance.store.keyslots import Argon2Cost

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


def a_root() -> RootKey:
    return RootKey(os.urandom(16).hex(), bytearray(os.urandom(32)))


def test_unlock_gives_the_root_key_that_create_drew(tmp_path):
    path = tmp_path / "keyslots.json"
    created = keyslots.create(path, b"a long passphrase", cost=CHEAP)
    unlocked = keyslots.unlock(path, b"a long passphrase")
    assert (unlocked.store_id, unlocked.buffer) == (created.store_id, created.buffer)
    assert keyslots.store_id(path) == created.store_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bytes(created.buffer) not in path.read_bytes()
    assert b"passphrase" not in path.read_bytes().replace(b'"passphrase"', b"")


def test_the_default_cost_is_the_designed_one(tmp_path):
    path = tmp_path / "keyslots.json"
    keyslots.create(path, b"p")
    text = path.read_text()
    assert '"memory_kib":262144' in text
    assert '"iterations":3' in text
    assert '"lanes":4' in text


def test_two_stores_with_one_passphrase_share_nothing(tmp_path):
    a = keyslots.create(tmp_path / "a", b"p", cost=CHEAP)
    b = keyslots.create(tmp_path / "b", b"p", cost=CHEAP)
    assert a.buffer != b.buffer
    assert a.store_id != b.store_id


def test_the_same_passphrase_typed_in_another_unicode_form_opens(tmp_path):
    keyslots.create(tmp_path / "k", "caf\u00e9".encode(), cost=CHEAP)
    keyslots.unlock(tmp_path / "k", "cafe\u0301".encode())


def test_create_never_replaces(tmp_path):
    keyslots.create(tmp_path / "k", b"p", cost=CHEAP)
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(UsageError):
        keyslots.create(tmp_path / "k", b"q", cost=CHEAP)
    assert (tmp_path / "k").read_bytes() == before


@pytest.mark.parametrize("passphrase", [b"", b"\xed\xa0\x80", b"twelve lette\xc3", b"\xff"])
def test_an_unusable_passphrase_is_a_usage_error_that_does_not_show_it(tmp_path, passphrase):
    with pytest.raises(UsageError) as caught:
        keyslots.create(tmp_path / "k", passphrase, cost=CHEAP)
    assert caught.value.__cause__ is None
    assert not (tmp_path / "k").exists()


def test_a_missing_keyslot_file_is_missing(tmp_path):
    with pytest.raises(ArtefactMissing):
        keyslots.unlock(tmp_path / "k", b"p")


def test_a_data_key_unwraps_only_where_it_belongs(tmp_path):
    root = a_root()
    ring = KeyRing.create(root, tmp_path / "keks")
    data_key, wrapped, epoch = ring.new_data_key("ds-1")
    assert (len(data_key), epoch, len(wrapped)) == (32, 1, 80)
    assert KeyRing(root, tmp_path / "keks").unwrap(wrapped, "ds-1", 1) == data_key
    with pytest.raises(IntegrityError):
        ring.unwrap(wrapped, "ds-2", 1)
    os.link(tmp_path / "keks" / "epoch-1.json", tmp_path / "keks" / "epoch-2.json")
    with pytest.raises(IntegrityError):
        ring.unwrap(wrapped, "ds-1", 2)
    with pytest.raises(IntegrityError):
        KeyRing(a_root(), tmp_path / "keks").unwrap(wrapped, "ds-1", 1)


def test_every_data_key_is_fresh(tmp_path):
    ring = KeyRing.create(a_root(), tmp_path / "keks")
    assert len({ring.new_data_key("ds-1")[0] for _ in range(50)}) == 50


def test_without_its_epoch_key_a_data_key_is_gone(tmp_path):
    ring = KeyRing.create(a_root(), tmp_path / "keks")
    _, wrapped, epoch = ring.new_data_key("ds-1")
    (tmp_path / "keks" / "epoch-1.json").unlink()
    with pytest.raises(KeyUnavailable):
        ring.unwrap(wrapped, "ds-1", epoch)
    with pytest.raises(KeyUnavailable):
        ring.new_data_key("ds-1")


def test_a_second_epoch_one_is_refused(tmp_path):
    root = a_root()
    KeyRing.create(root, tmp_path)
    with pytest.raises(UsageError):
        KeyRing.create(root, tmp_path)


def test_a_wiped_root_key_is_zeroed_and_refuses():
    root = a_root()
    buffer = root.buffer
    root.wipe()
    root.wipe()
    assert buffer == bytes(32)
    with pytest.raises(KeyUnavailable):
        root.derive("anything")


def test_derived_keys_differ_by_purpose_and_by_store():
    root = a_root()
    other = RootKey("00" * 16, bytearray(root.buffer))
    derived = [fingerprint_key(root), body_private_key(root), bytes(root.derive("epoch-wrap")), fingerprint_key(other)]
    assert len(set(derived)) == 4


def test_no_repr_shows_a_key(tmp_path):
    root = a_root()
    shown = repr(root) + repr(KeyRing(root, tmp_path))
    assert root.buffer.hex() not in shown
    assert repr(bytes(root.buffer))[2:-1] not in shown


def test_the_body_key_file_holds_the_public_part(tmp_path):
    root = a_root()
    write_body_public_key(root, tmp_path / "body.pub")
    public = read_body_public_key(tmp_path / "body.pub")
    assert public == body_public_key(root)
    private = X25519PrivateKey.from_private_bytes(body_private_key(root))
    assert private.public_key().public_bytes_raw() == public
    assert body_private_key(root).hex().encode() not in (tmp_path / "body.pub").read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"appliance-body-key/1 00\n", b"x" * 100, b"appliance-body-key/2 " + b"0" * 64]
)
def test_a_damaged_body_key_file_is_refused(tmp_path, content):
    (tmp_path / "body.pub").write_bytes(content)
    with pytest.raises(IntegrityError):
        read_body_public_key(tmp_path / "body.pub")
