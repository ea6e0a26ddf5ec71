"""Every error that toggle-edge raises on purpose.

- ToggleEdgeError
  - InputError (ValueError)      the user's file, flag or formula: exit code 2
    - ProfileError
    - ModelError
    - ProbeError
    - ConfigError
    - DeviceFileError
    - BundleError                a bundle's folder: incomplete, damaged, unsigned, or signed by a stranger
    - RunFolderError             a run that validate kept: incomplete, or altered since
    - SigningKeyError
    - StudyError                 no study of this name, or one that was started differently
  - OperationError               could not be done or measured: exit code 3
    - ExportError
      - ParityError              the exported graph does not compute what was searched
    - SearchError
    - StoreError
    - WorkspaceError             another process works in this folder, or it cannot be written
    - CertificationError
    - FleetError
      - TransportError           refused, unknown host, no such file on the device
        - HostKeyError
        - TransportLostError     the link went away; the operation may be repeated
      - AgentError               the agent answered with an error, or not in its protocol

A message says what was expected, what came, and what to do.
"""

__all__ = [
    "AgentError",
    "BundleError",
    "CertificationError",
    "ConfigError",
    "DeviceFileError",
    "ExportError",
    "FleetError",
    "HostKeyError",
    "InputError",
    "ModelError",
    "OperationError",
    "ParityError",
    "ProbeError",
    "ProfileError",
    "RunFolderError",
    "SearchError",
    "SigningKeyError",
    "StoreError",
    "StudyError",
    "ToggleEdgeError",
    "TransportError",
    "TransportLostError",
    "WorkspaceError",
]


class ToggleEdgeError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 3


class InputError(ToggleEdgeError, ValueError):
    """Something the user wrote cannot be used as it is."""

    exit_code = 2


class ProfileError(InputError):
    """A profile file has a wrong key, value or formula."""


class ModelError(InputError):
    """A model folder is missing, incomplete, or of an architecture that cannot be compressed."""


class ProbeError(InputError):
    """A probe file is malformed, or holds too few or too short probes."""


class ConfigError(InputError):
    """A format or config cannot be parsed or does not fit the model or the target's menu."""


class DeviceFileError(InputError):
    """A device file is missing or has a wrong key or value."""


class BundleError(InputError):
    """A bundle's folder cannot be used: incomplete, not what its digests say, unsigned, or signed by a stranger."""


class RunFolderError(InputError):
    pass


class SigningKeyError(InputError):
    """A signing key or a trusted key's file cannot be read or written."""


class StudyError(InputError):
    """A study cannot be used as it was named: there is none, or it was started with something else."""


class OperationError(ToggleEdgeError):
    """Something could not be done or measured."""


class ExportError(OperationError):
    """A candidate could not be exported."""


class ParityError(ExportError):
    """The exported graph differs from the searched weights by more than the tolerance."""


class SearchError(OperationError):
    """The search cannot go on."""


class StoreError(OperationError):
    """The store cannot be opened, or holds something else than was asked for."""


class WorkspaceError(OperationError):
    """A work folder cannot be used: another process works there, or it cannot be written."""


class CertificationError(OperationError):
    """The device's claim and its own traces disagree, or the traces cannot be judged."""


class FleetError(OperationError):
    """A device could not be used."""


class TransportError(FleetError):
    """The device refused: authentication, permission, a missing file, a failed command."""


class HostKeyError(TransportError):
    """The device's host key is unknown or not the pinned one. Nothing was sent."""


class TransportLostError(TransportError):
    """The link went away in the middle. What was sent is on the device; repeat to resume."""


class AgentError(FleetError):
    """The agent reported an error, or printed something that is not its protocol."""
