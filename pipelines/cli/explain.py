"""Why a user gets what he gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import LogLevel, LogOption, Overrides, load, set_up_logging
from recsys.contracts.errors import ConfigError
from recsys.scratch import scratch_folder

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.explain.explain import ExplainedModel
    from serving.config import RecommendConfig
    from serving.inputs.user_histories import StoredUsers


def explain(
    user: Annotated[str, typer.Option(help="Id of the user, as in the data.")],
    config: Annotated[Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe of the run.")] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(help="models:/name@champion, models:/name/3, or a bundle folder; default: the champion."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Number of a version, or a model as in --model, to compare with."),
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Histories or a prepared folder; default: the prepared data of the recipe.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow of the models; default: MLFLOW_TRACKING_URI.")
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Items of the list, or sessions where the recipe answers with them; default: recommend.k."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page there as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Show one user's history, list, codes, rules, scores of every stage and neighbours; with another model beside it.

    Example: recsys explain --config pipelines/recipes/demo.yaml --user 1000017
    """
    from pipelines.explain.explain import explain as explain_one
    from pipelines.explain.text import as_html, as_text
    from recsys.contracts.manifest import explain_write_errors

    set_up_logging(log_level)
    if config is None and (model is None or users is None):
        raise ConfigError("explain: give --config, or both --model and --users")
    with scratch_folder("explain") as scratch:
        if config is not None:
            place: _OfRun | _Anywhere = _OfRun(load(config, overrides), scratch)
        else:
            place = _Anywhere(overrides or [], tracking_uri, scratch)
        settings = place.settings if k is None else place.settings.model_copy(update={"k": k})
        found = explain_one(
            place.open(model, "model"),
            None if against is None else place.open(against, "against"),
            lambda: place.users(users),
            user,
            settings,
        )
    if html is not None:
        with explain_write_errors(html.parent, "--html"):
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(as_html(found), encoding="utf-8")
    print(json.dumps(found, indent=2, default=str) if as_json else as_text(found))


class _Anywhere:
    """Models and users that belong to no run."""

    def __init__(self, overrides: list[str], tracking_uri: str | None, scratch: Path) -> None:
        from recsys.config import apply_overrides, validate
        from serving.config import RecommendConfig

        given: dict[str, Any] = {}
        self.settings: RecommendConfig = validate(
            RecommendConfig, apply_overrides(given, overrides, RecommendConfig), "recommend"
        )
        self._uri, self._scratch = tracking_uri, scratch

    def open(self, reference: str | None, role: str) -> ExplainedModel:
        """A bundle by reference or folder."""
        from pipelines.explain.explain import ExplainedModel
        from serving.batch.job import open_bundle

        if reference is None or reference.isdigit():
            raise ConfigError(
                f"explain: --{role} is {reference!r}; without --config name models:/name/version or a folder"
            )
        bundle, version = open_bundle(reference, self._scratch / role, self._uri)
        return ExplainedModel(bundle, version)

    def users(self, path: Path | None) -> StoredUsers:
        """A file or a prepared folder."""
        from serving.batch.job import source_of

        assert path is not None, "asked for before"
        return source_of(path, self.settings.timestamp_unit).open()


class _OfRun:
    """Champion, versions and prepared data of a recipe."""

    def __init__(self, config: RunConfig, scratch: Path) -> None:
        from pipelines.workflow import Workflow
        from recsys.runtime import SilentProgress

        self.settings = config.recommend
        self._config, self._scratch = config, scratch
        self._workflow = Workflow(config, SilentProgress())

    def open(self, reference: str | None, role: str) -> ExplainedModel:
        """The champion, the recipe's model, a version by number, or any reference."""
        from pipelines.explain.explain import ExplainedModel
        from serving.registry.aliases import CHAMPION

        name = self._config.registered_name
        reference = reference or self.settings.model or f"models:/{name}@{CHAMPION}"
        if reference.isdigit():
            reference = f"models:/{name}/{reference}"
        bundle, version = self._workflow.open_model(reference)
        return ExplainedModel(bundle.path, version)

    def users(self, path: Path | None) -> StoredUsers:
        """The prepared data of the recipe, or what is given."""
        from serving.batch.job import source_of

        if path is None:
            path = self._workflow.result_of("prepare", "explain").path
        return source_of(path, self.settings.timestamp_unit).open()
