from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Disposition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISPOSITION_UNSPECIFIED: _ClassVar[Disposition]
    DISPOSITION_REJECT: _ClassVar[Disposition]
    DISPOSITION_QUARANTINE: _ClassVar[Disposition]
    DISPOSITION_ADMIT_DENOISED: _ClassVar[Disposition]
    DISPOSITION_ADMIT: _ClassVar[Disposition]
DISPOSITION_UNSPECIFIED: Disposition
DISPOSITION_REJECT: Disposition
DISPOSITION_QUARANTINE: Disposition
DISPOSITION_ADMIT_DENOISED: Disposition
DISPOSITION_ADMIT: Disposition

class ProtectRequest(_message.Message):
    __slots__ = ("dicom", "route")
    DICOM_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    dicom: bytes
    route: str
    def __init__(self, dicom: _Optional[bytes] = ..., route: _Optional[str] = ...) -> None: ...

class ProtectChunk(_message.Message):
    __slots__ = ("begin", "data", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    data: bytes
    end: End
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("route", "size_hint")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    SIZE_HINT_FIELD_NUMBER: _ClassVar[int]
    route: str
    size_hint: int
    def __init__(self, route: _Optional[str] = ..., size_hint: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProtectReply(_message.Message):
    __slots__ = ("scan_sha256", "disposition", "reasons", "prediction", "receipt", "log_index", "findings", "quarantine_id", "released_by")
    SCAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    DISPOSITION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASED_BY_FIELD_NUMBER: _ClassVar[int]
    scan_sha256: str
    disposition: Disposition
    reasons: _containers.RepeatedScalarFieldContainer[str]
    prediction: Prediction
    receipt: bytes
    log_index: int
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    quarantine_id: str
    released_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, scan_sha256: _Optional[str] = ..., disposition: _Optional[_Union[Disposition, str]] = ..., reasons: _Optional[_Iterable[str]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., receipt: _Optional[bytes] = ..., log_index: _Optional[int] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., quarantine_id: _Optional[str] = ..., released_by: _Optional[_Iterable[str]] = ...) -> None: ...

class StudyReply(_message.Message):
    __slots__ = ("instance", "study", "detail", "earlier")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    instance: ProtectReply
    study: StudyVerdict
    detail: str
    earlier: bool
    def __init__(self, instance: _Optional[_Union[ProtectReply, _Mapping]] = ..., study: _Optional[_Union[StudyVerdict, _Mapping]] = ..., detail: _Optional[str] = ..., earlier: _Optional[bool] = ...) -> None: ...

class StudyVerdict(_message.Message):
    __slots__ = ("study_sha256", "disposition", "reasons", "receipt", "log_index", "instances", "p_value", "slices")
    STUDY_SHA256_FIELD_NUMBER: _ClassVar[int]
    DISPOSITION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    study_sha256: str
    disposition: Disposition
    reasons: _containers.RepeatedScalarFieldContainer[str]
    receipt: bytes
    log_index: int
    instances: int
    p_value: float
    slices: _containers.RepeatedCompositeFieldContainer[StudySlice]
    def __init__(self, study_sha256: _Optional[str] = ..., disposition: _Optional[_Union[Disposition, str]] = ..., reasons: _Optional[_Iterable[str]] = ..., receipt: _Optional[bytes] = ..., log_index: _Optional[int] = ..., instances: _Optional[int] = ..., p_value: _Optional[float] = ..., slices: _Optional[_Iterable[_Union[StudySlice, _Mapping]]] = ...) -> None: ...

class StudySlice(_message.Message):
    __slots__ = ("scan_sha256", "p_value", "adjusted_p_value", "suspect")
    SCAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    ADJUSTED_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    scan_sha256: str
    p_value: float
    adjusted_p_value: float
    suspect: bool
    def __init__(self, scan_sha256: _Optional[str] = ..., p_value: _Optional[float] = ..., adjusted_p_value: _Optional[float] = ..., suspect: _Optional[bool] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("model", "version", "label", "scores")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    label: str
    scores: _containers.RepeatedCompositeFieldContainer[ClassScore]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ..., scores: _Optional[_Iterable[_Union[ClassScore, _Mapping]]] = ...) -> None: ...

class ClassScore(_message.Message):
    __slots__ = ("name", "score")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    score: float
    def __init__(self, name: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("stage", "outcome", "reason", "detail", "score", "p_value", "p_values", "seconds")
    class PValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    P_VALUES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    outcome: str
    reason: str
    detail: str
    score: float
    p_value: float
    p_values: _containers.ScalarMap[str, float]
    seconds: float
    def __init__(self, stage: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., score: _Optional[float] = ..., p_value: _Optional[float] = ..., p_values: _Optional[_Mapping[str, float]] = ..., seconds: _Optional[float] = ...) -> None: ...
