"""What each kind of run declares, in the module that configures its model, for :mod:`worldmodel.checkpoint`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunKind:
    """A kind of run, and what its config.yaml holds besides the keys that all kinds share.

    Attributes:
        config: dataclass that configures the model.
        build: ``module:name`` of what makes the model from its configuration; imported when needed, as it needs torch.
        paths: keys of the data section that are paths of this machine, which are not exported.
        choices: keys of the data section that a resumed run must not change.
        types: types of further keys of the data section.
    """

    config: type
    build: str
    paths: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    types: dict[str, type] = field(default_factory=dict)
