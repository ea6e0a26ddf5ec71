"""The tables of the store. A change here needs a new `SCHEMA_VERSION`, and a migration in `migrations`."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 5

metadata = sa.MetaData()
_Json = sa.JSON(none_as_null=True)

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))
studies = sa.Table(
    "studies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("model_digest", sa.Text, nullable=False),
    sa.Column("profile", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("created", sa.Text, nullable=False),
    # Since version 2; NULL in studies that are older.
    sa.Column("model_folder", sa.Text),
    sa.Column("profile_path", sa.Text),
    sa.Column("profile_digest", sa.Text),
    sa.Column("probes_path", sa.Text),
    sa.Column("probes_digest", sa.Text),
    sa.Column("sensitivity", _Json),
    # Since version 3; until then there was one quantiser.
    sa.Column("quantiser", sa.Text, nullable=False, server_default="rtn"),
    # Since version 4; until then nothing was pruned.
    sa.Column("pruner", sa.Text, nullable=False, server_default="magnitude"),
    # Since version 5; until then trials were proposed one by one.
    sa.Column("batch", sa.Integer, nullable=False, server_default="1"),
    sa.Column("profile_content", _Json),  # since version 5; NULL in studies that are older
)
trials = sa.Table(
    "trials",
    metadata,
    sa.Column("study", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("config_digest", sa.Text, nullable=False),
    sa.Column("config", _Json, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("proxy_flops", sa.Double, nullable=False),
    sa.Column("avgpp", sa.Double),
    sa.Column("robustness", _Json, nullable=False),
    sa.Column("feasible", _Json, nullable=False),
    sa.Column("payload", _Json, nullable=False),
    sa.Column("created", sa.Text),  # since version 2
    # Since version 4; NULL in trials that are older, none of which stopped early.
    sa.Column("properties", _Json),
    sa.Column("refuted", sa.Boolean),
)
# Since version 5.
readings = sa.Table(
    "readings",
    metadata,
    sa.Column("study", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("config_digest", sa.Text, primary_key=True),
    sa.Column("probes", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("satisfied", _Json, nullable=False),
    sa.Column("avgpp", sa.Double),
    sa.Column("created", sa.Text, nullable=False),
)
bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("study", sa.ForeignKey("studies.id"), primary_key=True),
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("config_digest", sa.Text, nullable=False),
    sa.Column("artifact_bytes", sa.BigInteger, nullable=False),
    # Text, not JSON: the digest names these very bytes.
    sa.Column("manifest", sa.Text, nullable=False),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("study", sa.Integer, nullable=False),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("certified", sa.Boolean),
    sa.Column("certificate", _Json),
    sa.Column("traces", sa.Text),
    sa.Column("created", sa.Text, nullable=False),
    sa.ForeignKeyConstraint(["study", "bundle"], ["bundles.study", "bundles.digest"]),
)
measurements = sa.Table(
    "measurements",
    metadata,
    sa.Column("run", sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("unit", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("low", sa.Double),
    sa.Column("high", sa.Double),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
)
