"""What tests do with devices of every kind: register one, deploy to it, validate there, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.plan import Plan
from toggle_runtime.records import RunRecord, from_json

from toggle_edge.fleet.registration import Added, AddOptions, add_device
from toggle_edge.fleet.sshd import LoopbackSshd
from toggle_edge.pipeline.deploying import DeployOptions, run_deploy
from toggle_edge.pipeline.exporting import ExportOptions, run_export
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.validation import ValidateOptions, run_validate
from toggle_edge.report.deployment import DeployResult
from toggle_edge.report.progress import Reporter, silent
from toggle_edge.report.validation import ValidationResult

MODEL = demo_folder() / "model"
PROFILE = Path(__file__).parents[1] / "profiles" / "default.toml"
# Under emulation each process costs seconds, and each token a hundred times what it costs here.
VALIDATED = Plan(["parity", "verify"], pass_timeout_s=300.0, idle_s=0.0)
DEPLOYED = Plan(
    ["parity", "verify", "latency", "memory"],
    restarts=1,
    generations=1,
    warmups=0,
    tokens=4,
    pass_timeout_s=300.0,
    idle_s=0.0,
)


@dataclass(frozen=True)
class Journey:
    """What became of one device."""

    added: Added
    deployed: DeployResult
    validated: ValidationResult

    @property
    def record(self) -> RunRecord:
        text = Path(self.deployed.validation.record_file).read_text(encoding="utf-8")
        return from_json(RunRecord, text)

    def require_success(self) -> None:
        assert (self.deployed.validation.outcome, self.deployed.validation.reason) == ("PASS", None)
        assert self.deployed.deployment is not None
        assert (self.validated.outcome, self.validated.reason) == ("PASS", None)
        for result in (self.deployed.validation, self.validated):
            assert result.certificate is not None
            assert result.certificate.certified
            assert result.parity is not None
            assert result.parity.max_abs_logit_difference <= result.parity.tolerance


def exported(folder: Path, config: str, target: str = "onnx-cpu") -> Path:
    """A bundle of the demo model with two certificate probes."""
    profile = PROFILE.read_text()
    for what in ("search = 59", "certificate = 59"):
        assert what in profile
        profile = profile.replace(what, what.replace("59", "2"))
    few = folder / "few.toml"
    few.write_text(profile)
    bundle = folder / target
    run_export(ExportOptions(str(MODEL), bundle, config=config, target=target, profile=str(few)), silent)
    return bundle


def registered(server: LoopbackSshd, template: str | None = None) -> Added:
    """`device add`, in the current folder, with all that is known of it; a template fills in its own."""
    device = server.device
    options = AddOptions(
        name=device.name,
        host=device.host,
        port=device.port,
        user=device.user,
        identity=device.identity,
        host_key=device.host_key,
        template=template,
        python=None if template else device.python,
        root=None if template else device.root,
    )
    return add_device(options, lambda offer: False)


def deployed_and_validated(added: Added, bundle: Path, report: Reporter = silent) -> Journey:
    name = added.device.name
    deployed = run_deploy(DeployOptions(name, bundle, plan=DEPLOYED), report)
    return Journey(added, deployed, run_validate(ValidateOptions(name, bundle, plan=VALIDATED), report))
