"""The word that ranks reduce to see whether all of them make the same call."""

from __future__ import annotations

import enum
import hashlib

# A word has a payload, then a bit for each kind of call.
_PAYLOAD_BITS = 50
_PAYLOAD_MASK = (1 << _PAYLOAD_BITS) - 1
# The payload of a collective call has a flag, then a hash and its complement.
_FLAG = 1
_HASH_BITS = (_PAYLOAD_BITS - 1) // 2
_HASH_MASK = (1 << _HASH_BITS) - 1


class Call(enum.Enum):
    """What a rank does in control traffic; the value is its name in messages."""

    VOTE = "StepVote.vote"
    BARRIER = "ddp_barrier"
    BROADCAST = "ddp_broadcast"
    GATHER = "gather_objects"
    RAISE = "raise_on_all_ranks"
    COLLECTIVE_CALL = "collective_call"


_BITS = {call: 1 << _PAYLOAD_BITS + index for index, call in enumerate(Call)}


def make_word(call: Call, payload: int) -> int:
    """Return the word of one rank, which has 56 bits."""
    assert 0 <= payload <= _PAYLOAD_MASK
    return payload | _BITS[call]


def payload_of(word: int) -> int:
    """Return the payloads in a word that was reduced by OR."""
    return word & _PAYLOAD_MASK


def other_calls(word: int, call: Call) -> list[Call]:
    """Return the calls in a reduced word that differ from this rank's.

    Two collective calls differ if their names do, whose hashes are their payloads.
    """
    others = [other for other, bit in _BITS.items() if word & bit and other is not call]
    if call is Call.COLLECTIVE_CALL and (word >> _HASH_BITS) & word & (_HASH_MASK << 1):
        others.append(call)
    return others


def call_payload(name: str, *, flag: bool = False) -> int:
    """Return a payload whose OR over ranks shows whether all of them have the same name.

    It has a hash and its complement: no bit of an OR of equal ones is set in both halves.

    Parameters
    ----------
    name : str
        Of the call.
    flag : bool
        What this rank adds to what `has_flag` returns.
    """
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") & _HASH_MASK
    return value << (_HASH_BITS + 1) | (~value & _HASH_MASK) << 1 | (_FLAG if flag else 0)


def has_flag(payload: int) -> bool:
    """Return whether any rank set the flag of a payload that was reduced by OR."""
    return bool(payload & _FLAG)
