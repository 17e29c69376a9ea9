"""The tree is that of RFC 6962: its published roots, and proofs that prove what they should and nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.tree import (
    Edge,
    ProofError,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    place_of,
    verify_consistency,
    verify_inclusion,
)

# The leaves and roots that Certificate Transparency's implementations are tested with.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


class Tree:
    """A whole log in memory, as a sink would keep it."""

    def __init__(self, bodies: list[bytes]) -> None:
        self.edges, self.entries = [Edge()], []
        for body in bodies:
            edge, entry = self.edges[-1].entry(body)
            self.edges.append(edge)
            self.entries.append(entry)

    def node(self, level: int, index: int) -> bytes:
        place, offset = place_of(level, index)
        return self.entries[place].hashes[offset : offset + 32]


def _root(bodies: list[bytes]) -> bytes:
    """MTH as RFC 6962 2.1 writes it."""
    if not bodies:
        return hashlib.sha256(b"").digest()
    if len(bodies) == 1:
        return leaf_hash(bodies[0])
    split = 1
    while split * 2 < len(bodies):
        split *= 2
    return node_hash(_root(bodies[:split]), _root(bodies[split:]))


BODIES = [bytes([number]) * number for number in range(70)]
TREE = Tree(BODIES)


def test_the_published_roots_come_out():
    assert [edge.root.hex() for edge in Tree(LEAVES).edges] == ROOTS


def test_every_root_is_that_of_the_recursive_definition():
    assert [edge.root for edge in TREE.edges] == [_root(BODIES[:size]) for size in range(71)]


def test_an_edge_read_from_stored_hashes_is_the_one_that_grew():
    assert [Edge.read(size, TREE.node) for size in range(71)] == TREE.edges


def test_an_entry_carries_two_hashes_on_average():
    assert sum(len(entry.hashes) for entry in TREE.entries[:64]) == 32 * 127


@pytest.mark.parametrize("size", range(1, 71))
def test_every_inclusion_proof_verifies_and_none_for_another_place(size):
    root = TREE.edges[size].root
    for index in range(size):
        path = inclusion_path(index, size, TREE.node)
        verify_inclusion(leaf_hash(BODIES[index]), index, size, path, root)
        assert len(path) <= (size - 1).bit_length()
        for wrong in ((index + 1) % size, size):
            if wrong != index:
                with pytest.raises(ProofError):
                    verify_inclusion(leaf_hash(BODIES[index]), wrong, size, path, root)


@pytest.mark.parametrize("new", range(1, 71))
def test_every_consistency_proof_verifies_and_none_for_another_beginning(new):
    for old in range(1, new + 1):
        path = consistency_path(old, new, TREE.node)
        verify_consistency(old, TREE.edges[old].root, new, TREE.edges[new].root, path)
        with pytest.raises(ProofError):
            verify_consistency(old, bytes(32), new, TREE.edges[new].root, path)
        with pytest.raises(ProofError):
            verify_consistency(old, TREE.edges[old].root, new, bytes(32), path)


@given(st.integers(2, 70), st.data())
def test_a_changed_proof_proves_nothing(size, data):
    index = data.draw(st.integers(0, size - 1))
    path = inclusion_path(index, size, TREE.node)
    at = data.draw(st.integers(0, len(path) - 1))
    changed = data.draw(
        st.sampled_from([path[:-1], [*path, bytes(32)], [*path[:at], bytes(32), *path[at + 1 :]], [*path[:at]]])
    )
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(BODIES[index]), index, size, changed, TREE.edges[size].root)


@given(st.integers(2, 70), st.data())
def test_a_changed_consistency_proof_proves_nothing(new, data):
    old = data.draw(st.integers(1, new - 1))
    path = consistency_path(old, new, TREE.node)
    at = data.draw(st.integers(0, len(path) - 1))
    changed = data.draw(st.sampled_from([path[:-1], [*path, bytes(32)], [*path[:at], bytes(32), *path[at + 1 :]]]))
    with pytest.raises(ProofError):
        verify_consistency(old, TREE.edges[old].root, new, TREE.edges[new].root, changed)


def test_the_empty_log_is_the_beginning_of_every_log():
    verify_consistency(0, Edge().root, 7, TREE.edges[7].root, [])
    with pytest.raises(ProofError):
        verify_consistency(0, bytes(32), 7, TREE.edges[7].root, [])


@pytest.mark.parametrize(("old", "new"), [(-1, 5), (6, 5), (5, 2**60)])
def test_sizes_that_cannot_be_are_refused(old, new):
    with pytest.raises(ProofError):
        verify_consistency(old, bytes(32), new, bytes(32), [])
    with pytest.raises(ProofError):
        verify_inclusion(bytes(32), old, new if new < 2**50 else old, [], bytes(32))
