"""Published benchmarks as capability suites for real models: GSM8K, MATH-500, OlympiadBench, IFEval and MMLU.

A suite reads its rows from the Hugging Face hub, or, named with a file (``gsm8k:rows.jsonl``), from there.
"""

from offmodel import catalog
from offmodel.measure.benchmarks.choices import MMLU
from offmodel.measure.benchmarks.ifeval import IFEVAL
from offmodel.measure.benchmarks.load import Benchmark, Published, suite
from offmodel.measure.benchmarks.maths import GSM8K, MATH500, OLYMPIADBENCH

__all__ = ["BENCHMARKS", "Benchmark", "Published", "suite"]

_SOURCES: dict[Benchmark, str] = {
    GSM8K: "Cobbe et al. 2021, arXiv:2110.14168",
    MATH500: "Hendrycks et al. 2021, arXiv:2103.03874; the 500 problems of Lightman et al. 2023, arXiv:2305.20050",
    OLYMPIADBENCH: "He et al. 2024, arXiv:2402.14008",
    IFEVAL: "Zhou et al. 2023, arXiv:2311.07911",
    MMLU: "Hendrycks et al. 2021, arXiv:2009.03300",
}
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _SOURCES}

for _benchmark, _source in _SOURCES.items():
    _suite = suite(_benchmark)
    catalog.add("suite", _suite.name, _suite, source=_source, text=_suite.definition)
