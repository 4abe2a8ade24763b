"""Optimizers, their immutable versions and the aliases that point at them."""

from urllib.parse import urlencode

from optserve.exchange import Awaited, Blocking, Exchange, exchange
from optserve.resource import Resource, segment
from optserve.wire.bodies import (
    AliasInfo,
    AliasRequest,
    OptimizerInfo,
    OptimizerSummary,
    VersionInfo,
    VersionSummary,
)
from optserve.wire.differences import VersionDiff
from optserve.wire.gradients import SAFETENSORS

CHAMPION = "champion"


class SharedOptimizers(Resource):
    """The operations of `client.optimizers`."""

    @exchange
    def get(self, name: str) -> Exchange[OptimizerInfo]:
        """One optimizer with its aliases, their history and its versions.

        Raises:
            OptimizerNotFound: no optimizer of that name.
        """
        return (yield from self._get(OptimizerInfo, f"/optimizers/{segment(name)}"))

    @exchange
    def versions(self, name: str) -> Exchange[list[VersionSummary]]:
        """Every version of an optimizer, the newest first.

        Raises:
            OptimizerNotFound: no optimizer of that name.
        """
        return (yield from self._list(VersionSummary, f"/optimizers/{segment(name)}/versions"))

    @exchange
    def version(self, name: str, version: int) -> Exchange[VersionInfo]:
        """One version: its architecture, recipe, parent, metrics and environment.

        Raises:
            OptimizerNotFound: no optimizer of that name.
            VersionNotFound: it has no such version.
        """
        return (yield from self._get(VersionInfo, f"/optimizers/{segment(name)}/versions/{version}"))

    @exchange
    def diff(self, name: str, version: int, other: str) -> Exchange[VersionDiff]:
        """In what `other` (NAME, NAME@7 or NAME@ALIAS) differs from a version: architecture and recipe.

        Raises:
            OptimizerNotFound: no optimizer of one of the names.
            VersionNotFound, AliasNotFound: it has no such version.
        """
        query = urlencode({"with": other})
        return (yield from self._get(VersionDiff, f"/optimizers/{segment(name)}/versions/{version}/diff?{query}"))

    @exchange
    def weights(self, name: str, version: int) -> Exchange[bytes]:
        """φ of one version: the bytes of a safetensors file whose metadata holds the architecture.

        Raises:
            OptimizerNotFound: no optimizer of that name.
            VersionNotFound: it has no such version.
        """
        response = yield from self._call("GET", f"/optimizers/{segment(name)}/versions/{version}/weights")
        return bytes(response.content)

    @exchange
    def import_weights(self, name: str, weights: bytes) -> Exchange[VersionInfo]:
        """Make a safetensors file the next version of an optimizer, which comes to be if there is none of that name.

        Raises:
            MalformedBody: not a safetensors file.
            WeightsInvalid: no architecture in its metadata, or weights that do not fit it.
        """
        return (yield from self._create(VersionInfo, f"/optimizers/{segment(name)}/versions", weights, SAFETENSORS))

    @exchange
    def promote(
        self, name: str, version: int, *, evaluation: str | None = None, force: bool = False
    ) -> Exchange[AliasInfo]:
        """Make a version the champion: what the bare name means from now on. Sessions keep the version they have.

        Args:
            name: the optimizer.
            version: its version.
            evaluation: where another version is the champion: the id of an evaluation in which this one beat that one.
            force: or put it there although nothing proves that it is better.

        Raises:
            VersionNotFound: the optimizer has no such version.
            PromotionUnproven: another version is the champion; the message says what to add.
            EvaluationNotFound: there is no evaluation of that id.
        """
        return (yield from self._set_alias(name, CHAMPION, AliasRequest(version, evaluation, force)))

    @exchange
    def set_alias(self, name: str, alias: str, version: int) -> Exchange[AliasInfo]:
        """Point an alias at a version.

        Raises:
            VersionNotFound: the optimizer has no such version.
            AliasReserved: the server keeps this alias itself.
        """
        return (yield from self._set_alias(name, alias, AliasRequest(version)))

    @exchange
    def remove_alias(self, name: str, alias: str) -> Exchange[None]:
        """Take an alias away; its history stays.

        Raises:
            AliasNotFound: the optimizer has no such alias.
            AliasReserved: the server keeps this alias itself.
        """
        yield from self._call("DELETE", _alias(name, alias))

    @exchange
    def list(self) -> Exchange[list[OptimizerSummary]]:
        """Every optimizer of the server."""
        return (yield from self._list(OptimizerSummary, "/optimizers"))

    def _set_alias(self, name: str, alias: str, request: AliasRequest) -> Exchange[AliasInfo]:
        return (yield from self._send(AliasInfo, "PUT", _alias(name, alias), request))


class Optimizers(Blocking, SharedOptimizers):
    """`client.optimizers`."""


class AsyncOptimizers(Awaited, SharedOptimizers):
    """`client.optimizers` of an `AsyncClient`."""


def _alias(name: str, alias: str) -> str:
    return f"/optimizers/{segment(name)}/aliases/{segment(alias)}"
