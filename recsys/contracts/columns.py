"""Column names. A name appears as text once, here; ``*_id`` comes from outside, ``*_index`` is dense and internal."""

from typing import Final


class Columns:
    """Names used in tables between stages and in what users read."""

    USER_ID: Final = "user_id"
    ITEM_ID: Final = "item_id"
    TIMESTAMP: Final = "timestamp"
    POSITION: Final = "position"
    EVENT_TYPE: Final = "event_type"
    SESSION_ID: Final = "session_id"
    SPLIT: Final = "split"

    USER_INDEX: Final = "user_index"
    ITEM_INDEX: Final = "item_index"
    SESSION_INDEX: Final = "session_index"
    AUTHOR_INDEX: Final = "author_index"
    CATEGORY_INDEX: Final = "category_index"

    WATCH_TIME_MS: Final = "watch_time_ms"
    DURATION_MS: Final = "duration_ms"
    WATCH_RATIO: Final = "watch_ratio"
    PROPENSITY: Final = "propensity"
    POSITIVE: Final = "positive"
    BEHAVIOUR: Final = "behaviour"

    TITLE: Final = "title"
    TEXT: Final = "text"
    CATEGORIES: Final = "categories"
    AUTHOR_ID: Final = "author_id"
    EMBEDDING: Final = "embedding"
    HAS_METADATA: Final = "has_metadata"
    TRAIN_COUNT: Final = "train_count"

    EVENT_START: Final = "event_start"
    EVENT_END: Final = "event_end"
    HISTORY_START: Final = "history_start"
    HISTORY_END: Final = "history_end"
    TARGETS: Final = "targets"
    REASON: Final = "reason"

    CODES: Final = "codes"
    SID: Final = "sid"
    BORN: Final = "born"

    SYSTEM: Final = "system"
    EXCLUDE_SEEN: Final = "exclude_seen"
    REFERENCE: Final = "reference"
    SLICE: Final = "slice"
    METRIC: Final = "metric"
    MEAN: Final = "mean"
    DIFFERENCE: Final = "difference"
    LOW: Final = "low"
    HIGH: Final = "high"
    P_VALUE: Final = "p_value"
    ROWS: Final = "rows"
    STEP: Final = "step"
    EPOCH: Final = "epoch"
    NAME: Final = "name"
    VALUE: Final = "value"

    ITEM_IDS: Final = "item_ids"
    TIMESTAMPS: Final = "timestamps"
    BEHAVIOURS: Final = "behaviours"
    WATCH_RATIOS: Final = "watch_ratios"
    DENY_ITEM_IDS: Final = "deny_item_ids"
    OBJECTIVE: Final = "objective"
    WORDS: Final = "words"

    SEGMENT: Final = "segment"
    RULE: Final = "rule"
    CATEGORY: Final = "category"

    RANK: Final = "rank"
    SESSION_RANK: Final = "session_rank"
    PLACE: Final = "place"
    NUM_UNKNOWN_ITEMS: Final = "num_unknown_items"
    SCORE: Final = "score"
    MODEL_NAME: Final = "model_name"
    MODEL_VERSION: Final = "model_version"
    SEMANTIC_ID_DIGEST: Final = "semantic_id_digest"
    RUN_ID: Final = "run_id"
    SCORED_AT: Final = "scored_at"


TRAIN, VALID, TEST = 0, 1, 2
"""Codes of the column ``split``."""

SPLIT_NAMES: Final = ("train", "valid", "test")
