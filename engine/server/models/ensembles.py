"""The rules by which models of a service may be, and stay, the members of an ensemble."""

from collections.abc import Mapping

from kwise.engine.artifact.manifest import Manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE
from kwise.engine.ensemble import Ensemble
from kwise.engine.server.models.source import EnsembleSource, Source
from kwise.engine.server.service import RewardService
from kwise.errors import ArtifactError, InvalidRequest, UnknownModel


def new_ensemble(service: RewardService, source: EnsembleSource) -> Ensemble:
    """Return an ensemble of models of the service.

    Raises:
        InvalidRequest: a member is not served, is an ensemble itself, or reads pairs of texts while
            others read conversations; or a model of another kind has the name.
    """
    models = service.models
    check_members(source, {name: isinstance(model, Ensemble) for name, model in models.items()})
    ensemble = Ensemble(source.name, source.member_names, models.__getitem__)
    if len({member.has_chat_template for member in ensemble.members}) > 1:
        problem = "some of them read a conversation, and others a pair of texts"
        raise InvalidRequest("members", problem)
    return ensemble


def check_members(source: EnsembleSource, served: Mapping[str, bool]) -> None:
    """Check that an ensemble can be made of the models of a server.

    Args:
        source: the ensemble.
        served: the names of the models; True for ensembles.

    Raises:
        InvalidRequest: a member is not served or is an ensemble itself, or an artifact's model has
            the name.
    """
    for name in source.member_names:
        if name not in served:
            raise InvalidRequest("members", UnknownModel(name, list(served)).problem)
        if served[name]:
            raise InvalidRequest("members", f"{name!r} is an ensemble; name its members")
    if not served.get(source.name, True):
        problem = "is the name of an artifact's model; give the ensemble another name"
        raise InvalidRequest("model", f"{source.name!r} {problem}")


def check_is_no_member(service: RewardService, name: str) -> None:
    """Raise InvalidRequest if a model is a member of an ensemble."""
    if ensembles := _ensembles_of(service, name):
        problem = f"it is a member of the ensemble {ensembles[0].name!r}; unload that first"
        raise InvalidRequest("model", problem)


def _ensembles_of(service: RewardService, name: str) -> list[Ensemble]:
    """Return the ensembles that a model is a member of."""
    models = service.models.values()
    return [m for m in models if isinstance(m, Ensemble) and name in m.member_names]


def check_suits_ensembles(
    service: RewardService, name: str, source: Source, manifest: Manifest
) -> None:
    """Check that the ensembles of a model can go on if an artifact takes its place.

    Args:
        name: the model that is replaced, or added.
        source, manifest: the artifact.

    Raises:
        ArtifactError: it reads a pair of texts, and the other members read a conversation, or the
            reverse.
    """
    has_chat_template = CHAT_TEMPLATE in manifest.files
    for ensemble in _ensembles_of(service, name):
        if ensemble.has_chat_template != has_chat_template:
            kinds = ("a pair of texts", "a conversation")
            raise ArtifactError(
                f"{source.path}: its model reads {kinds[has_chat_template]}, and {name} is a "
                f"member of the ensemble {ensemble.name!r}, whose models read "
                f"{kinds[not has_chat_template]}; unload that first"
            )
