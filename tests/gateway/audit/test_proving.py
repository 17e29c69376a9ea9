"""What the log hands out about itself convinces somebody who has only the public key, wherever the log lies."""

from __future__ import annotations

import json

import pytest

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.places import open_reader
from gateway.audit.proving import PAGE_BYTES_MAX, newest_checkpoint, page, prove_consistency, prove_inclusion
from gateway.audit.record import Started
from gateway.audit.tree import Edge, ProofError, leaf_hash, verify_consistency, verify_inclusion
from gateway.errors import AuditError, ScanError


@pytest.fixture
def log(written):
    with open_reader(written.name) as reader:
        yield reader


def _opened(note: bytes, key) -> Checkpoint:
    return Checkpoint.open(note, [key.public_key()])


def test_every_record_is_proven_under_the_signed_root(log, checkpoint_key):
    for index in range(40):
        proof = prove_inclusion(log, index)
        root = _opened(proof.note, checkpoint_key).root
        verify_inclusion(leaf_hash(proof.record), index, proof.size, proof.path, root)
        assert json.loads(proof.record)["config_sha256"] == str(index)


def test_a_record_is_proven_under_an_earlier_root_too(written, log, checkpoint_key):
    (note,) = written.query("SELECT note FROM checkpoints WHERE size = 20")[0]
    proof = prove_inclusion(log, 13, 20)
    verify_inclusion(leaf_hash(proof.record), 13, 20, proof.path, _opened(bytes(note), checkpoint_key).root)


def test_the_log_is_proven_to_have_grown_from_every_earlier_checkpoint(written, log, checkpoint_key):
    for size, note in written.query("SELECT size, note FROM checkpoints WHERE size > 0"):
        old, proof = _opened(bytes(note), checkpoint_key), prove_consistency(log, size)
        new = _opened(proof.note, checkpoint_key)
        verify_consistency(old.size, old.root, new.size, new.root, proof.path)


def test_a_log_that_was_rewritten_cannot_prove_that_it_grew(written, checkpoint_key):
    """Every hash and the newest checkpoint are new; only what the auditor kept from before is not."""
    (kept,) = written.query("SELECT note FROM checkpoints WHERE size = 20")[0]
    edge = Edge()
    for index, body in written.query("SELECT idx, body FROM entries ORDER BY idx"):
        edge, entry = edge.entry(bytes(body).replace(b'"5"', b'"6"'))
        written.query("UPDATE entries SET body = %s, hashes = %s WHERE idx = %s", entry.body, entry.hashes, index)
    old = _opened(bytes(kept), checkpoint_key)
    with open_reader(written.name) as log:
        proof = prove_consistency(log, 20, 40)
    with pytest.raises(ProofError, match="are not those of before"):
        verify_consistency(20, old.root, 40, edge.root, proof.path)


@pytest.mark.parametrize(("index", "size"), [(40, 0), (13, 13), (13, 41), (0, 2**40)])
def test_what_is_not_there_is_not_proven(log, index, size):
    with pytest.raises(ScanError):
        prove_inclusion(log, index, size)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (41, 0), (20, 10), (20, 41)])
def test_sizes_that_the_log_never_had_are_refused(log, old, new):
    with pytest.raises(ScanError):
        prove_consistency(log, old, new)


def test_a_record_that_no_checkpoint_covers_yet_is_said_to_be_so(open_log, place):
    log = open_log()
    log.append(Started("0", "test")).result()
    with open_reader(place.name) as reader:
        assert newest_checkpoint(reader)[0] == 0
        with pytest.raises(AuditError, match="no checkpoint covers record 0 yet"):
            prove_inclusion(reader, 0)
    log.close()


def test_a_damaged_hash_gives_no_proof(written):
    written.query("UPDATE entries SET hashes = %s WHERE idx = 31", b"short")
    with open_reader(written.name) as log, pytest.raises(AuditError, match="record 31"):
        prove_inclusion(log, 39)


def test_pages_follow_each_other_to_the_end(log):
    found, first = [], 0
    while batch := page(log, first, 7):
        assert len(batch) <= 7
        found += batch
        first = batch[-1][0] + 1
    assert [index for index, _ in found] == list(range(40))
    assert len(page(log, 0)) == 40
    assert page(log, 2**40) == []
    with pytest.raises(ScanError, match="at most 1000"):
        page(log, 0, 1001)


def test_a_page_is_bounded_in_bytes_but_never_empty(open_log, place):
    log = open_log()
    for size in (PAGE_BYTES_MAX // 2, PAGE_BYTES_MAX // 2, PAGE_BYTES_MAX * 2, 10):
        log.append(Started("x" * size, "test")).result()
    log.close()
    with open_reader(place.name) as reader:
        assert [[index for index, _ in page(reader, first)] for first in (0, 1, 2, 3)] == [[0], [1], [2], [3]]
