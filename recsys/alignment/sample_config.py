"""Which train samples alignment reads, which of their events say what was not wanted, and what requests ask for."""

from __future__ import annotations

from pydantic import Field

from recsys.config import FrozenConfig


class RsftConfig(FrozenConfig):
    """Leave the worse part of the exposure sessions out of what alignment reads (OneRec technical report, RSFT).

    Attributes:
        by: What a session is measured by: a column of ``events.parquet``, summed over all its exposures, such as
            ``watch_time_ms`` or a yes/no signal; or ``reward``: what the reward model says of each target.
        drop_share: Sessions below this quantile are dropped; those at it stay.
    """

    by: str = "watch_time_ms"
    drop_share: float = Field(default=0.5, gt=0, lt=1)


class DislikesConfig(FrozenConfig):
    """Explicit dislikes as rejected candidates, beside the pairs of the reward.

    A request whose user disliked something gets one more pair: the session that the user took is preferred to the same
    session with a disliked item in its last place. The reward has no part in it.

    Attributes:
        signals: Yes/no signals of the log that say so; those that the data set does not have are passed over.
    """

    signals: tuple[str, ...] = Field(default=("dislike", "hate", "report"), min_length=1)


class ObjectiveConfig(FrozenConfig):
    """Steering by weights of the reward's towers.

    Every preference request draws weights, which its candidates are evaluated by and which the policy is conditioned on; a
    served request names its own. The model needs ``model.num_objectives`` inputs, one per tower. A tower whose own weight in
    the reward is negative counts against, by as much as it is weighed with.

    Attributes:
        concentration: Of the Dirichlet distribution that the weights are drawn from; 1 is uniform, below 1 prefers the
            corners, where one tower has nearly everything.
        diversity: Add a tower for the share of different categories in a session.
    """

    concentration: float = Field(default=0.2, gt=0)
    diversity: bool = True
