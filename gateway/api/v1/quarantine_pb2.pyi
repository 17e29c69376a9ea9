from gateway.api.v1 import gateway_pb2 as _gateway_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListHeldRequest(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: str
    def __init__(self, state: _Optional[str] = ...) -> None: ...

class HeldRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class HeldBytes(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class HeldScan(_message.Message):
    __slots__ = ("id", "state", "scan_sha256", "bytes", "modality", "route", "receiver", "source", "since", "examinations", "acts", "reply")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SCAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    EXAMINATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    scan_sha256: str
    bytes: int
    modality: str
    route: str
    receiver: str
    source: str
    since: str
    examinations: _containers.RepeatedCompositeFieldContainer[HeldExamination]
    acts: _containers.RepeatedCompositeFieldContainer[ReviewAct]
    reply: _gateway_pb2.ProtectReply
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., scan_sha256: _Optional[str] = ..., bytes: _Optional[int] = ..., modality: _Optional[str] = ..., route: _Optional[str] = ..., receiver: _Optional[str] = ..., source: _Optional[str] = ..., since: _Optional[str] = ..., examinations: _Optional[_Iterable[_Union[HeldExamination, _Mapping]]] = ..., acts: _Optional[_Iterable[_Union[ReviewAct, _Mapping]]] = ..., reply: _Optional[_Union[_gateway_pb2.ProtectReply, _Mapping]] = ...) -> None: ...

class HeldExamination(_message.Message):
    __slots__ = ("received_at", "reasons", "findings")
    RECEIVED_AT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    received_at: str
    reasons: _containers.RepeatedScalarFieldContainer[str]
    findings: _containers.RepeatedCompositeFieldContainer[_gateway_pb2.Finding]
    def __init__(self, received_at: _Optional[str] = ..., reasons: _Optional[_Iterable[str]] = ..., findings: _Optional[_Iterable[_Union[_gateway_pb2.Finding, _Mapping]]] = ...) -> None: ...

class ReviewAct(_message.Message):
    __slots__ = ("by", "reason", "at")
    BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    by: str
    reason: str
    at: str
    def __init__(self, by: _Optional[str] = ..., reason: _Optional[str] = ..., at: _Optional[str] = ...) -> None: ...
