"""Measure OpenVINO GenAI on the same load; prints a line of JSON. Needs an environment of its own.

Usage: peer_openvino.py --convert SOURCE TARGET   (needs optimum-intel and nncf too)
       peer_openvino.py MODEL PLAN
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Symmetric int4 in groups of 64, the embedding in 8 bits, as Hagane's int4."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config = OVWeightQuantizationConfig(bits=4, group_size=64, sym=True, ratio=1.0)
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, quantization_config=config
    )
    model.save_pretrained(target)


class Runner:
    def __init__(self, path: Path, threads: int) -> None:
        import openvino_genai as genai

        self.genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 4  # GB
        scheduler.max_num_batched_tokens = 512
        scheduler.enable_prefix_caching = True
        self.pipeline = genai.ContinuousBatchingPipeline(
            str(path), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self.requests = 0

    def run(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
        """Seconds until every prompt has its first token, and from then to the last token."""
        import numpy as np
        import openvino

        config = self.genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True)
        begin = time.monotonic()
        handles = []
        for prompt in prompts:
            self.requests += 1
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self.pipeline.add_request(self.requests, ids, config))
        waiting, first = set(range(len(handles))), begin
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            if waiting:
                waiting -= {i for i in waiting if handles[i].can_read()}
                first = time.monotonic()
        return first - begin, time.monotonic() - first


def measure(path: Path, plan: dict) -> dict:
    started = time.monotonic()
    runner = Runner(path, plan["threads"])
    ready = time.monotonic() - started
    rng = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(10, 150_000) for _ in range(length)]

    runner.run([prompt(64)], 2)
    prefill, prefix_hit, decode = {}, {}, {}
    for length in plan["prompts"]:
        fresh, hits = [], []
        for _ in range(plan["rounds"]):
            first = prompt(length)
            fresh.append(runner.run([first], 1)[0])
            hits.append(runner.run([first[: -plan["tail"]] + prompt(plan["tail"])], 1)[0])
        prefill[length] = length / statistics.median(fresh)
        prefix_hit[length] = statistics.median(hits)
    for streams in plan["streams"]:
        rates = []
        for _ in range(plan["rounds"]):
            prompts = [prompt(plan["context"]) for _ in range(streams)]
            _, seconds = runner.run(prompts, plan["new_tokens"] + 1)
            rates.append(streams * plan["new_tokens"] / seconds)
        decode[streams] = statistics.median(rates)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"prefill": prefill, "prefix_hit": prefix_hit, "decode": decode}
    return {"ready_seconds": ready, "peak_memory": peak} | figures


if __name__ == "__main__":
    if sys.argv[1] == "--convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        print(json.dumps(measure(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))))
