"""Data sets -> probes with answer steps, split into search and certificate probes.

`files` reads safely, `kinds` knows the data sets, `hub` those that are loaded by name, `passages` is what they give,
`building` makes tokens of it, `similarity` finds near-duplicates, `splitting` keeps the two sides apart.
"""

from toggle_edge.probes.building import LoadedProbes, load_probes, read_probes
from toggle_edge.probes.probe import Probe, excerpt, probes_to_json
from toggle_edge.probes.splitting import ProbeSplit, split_probes

__all__ = [
    "LoadedProbes",
    "Probe",
    "ProbeSplit",
    "excerpt",
    "load_probes",
    "probes_to_json",
    "read_probes",
    "split_probes",
]
