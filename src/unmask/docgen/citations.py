"""Citations in BibTeX: unmask's own, and those of the papers that a decoder's or cache's source names."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass

from unmask.errors import ConfigError
from unmask.version import __version__

RELEASED = "2026"


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv. `authors`: in BibTeX's form, empty where we have not checked them."""

    key: str
    title: str
    authors: str = ""


PAPERS: dict[str, Paper] = {
    "2502.09992": Paper("llada", "Large Language Diffusion Models", "Nie, Shen and others"),
    "2503.09573": Paper(
        "bd3lm",
        "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models",
    ),
    "2505.15781": Paper("dkvcache", "dKV-Cache: The Cache for Diffusion Language Models"),
    "2505.22618": Paper(
        "fastdllm",
        "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel "
        "Decoding",
        "Wu, Chengyue and others",
    ),
    "2505.24857": Paper(
        "ebsampler",
        "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
        "Ben-Hamu, Heli and Gat, Itai and Severo, Daniel and Nolte, Niklas and Karrer, Brian",
    ),
    "2506.06295": Paper(
        "dllmcache",
        "dLLM-Cache: Accelerating Diffusion Large Language Models with Adaptive Caching",
    ),
    "2507.18578": Paper(
        "wino",
        "Wide-In, Narrow-Out: Revokable Decoding for Efficient and Effective DLLMs",
        "Hong, Feng and Yu, Geng and Ye, Yushi and Huang, Haicheng and Zheng, Huangjie and Zhang, Ya "
        "and Wang, Yanfeng and Yao, Jiangchao",
    ),
    "2508.00819": Paper(
        "daedal",
        "Beyond Fixed: Training-Free Variable-Length Denoising for Diffusion Large Language Models",
        "Li, Jinsong and Dong, Xiaoyi and Zang, Yuhang and Cao, Yuhang and Wang, Jiaqi and Lin, Dahua",
    ),
    "2508.13021": Paper(
        "pcsampler",
        "PC-Sampler: Position-Aware Calibration of Decoding Bias in Masked Diffusion Models",
        "Huang, Pengcheng and Liu, Shuhao and Liu, Zhenghao and Yan, Yukun and Wang, Shuo and Chen, "
        "Zulong and Xiao, Tong",
    ),
    "2508.15487": Paper("dream", "Dream 7B: Diffusion Large Language Models"),
    "2508.19982": Paper("prophet", "Diffusion Language Models Know the Answer Before Decoding"),
    "2509.23094": Paper(
        "d2cache", "d2Cache: Accelerating Diffusion-Based LLMs via Dual Adaptive Caching"
    ),
    "2509.26328": Paper("fastdllmv2", "Fast-dLLM v2: Efficient Block-Diffusion LLM"),
    "2510.06133": Paper(
        "creditdecoding",
        "CreditDecoding: Accelerating Parallel Decoding in Diffusion Large Language Models with Trace "
        "Credits",
        "Wang, Kangyu and Jiang, Zhiyun and Feng, Haibo and Zhao, Weijia and Liu, Lin and Li, Jianguo "
        "and Lan, Zhenzhong and Lin, Weiyao",
    ),
    "2510.06303": Paper(
        "sdar",
        "SDAR: A Synergistic Diffusion-AutoRegression Paradigm for Scalable Sequence Generation",
    ),
    "2510.08666": Paper(
        "dinfer", "dInfer: An Efficient Inference Framework for Diffusion Language Models"
    ),
    "2511.05664": Paper(
        "klass",
        "KLASS: KL-Guided Fast Inference in Masked Diffusion Models",
        "Kim, Seo Hyun and Hong, Sunwoo and Jung, Hojung and Park, Youngrok and Yun, Se-Young",
    ),
    "2512.07173": Paper(
        "cadllm",
        "Improving the Throughput of Diffusion-based Large Language Models via a Training-Free "
        "Confidence-Aware Calibration",
    ),
    "2512.15745": Paper("llada20", "LLaDA2.0: Scaling Up Diffusion Language Models to 100B"),
    "2602.08676": Paper(
        "llada21", "LLaDA2.1: Speeding Up Text Diffusion via Token Editing", "Bie, Tiwei and others"
    ),
}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def sources_of(plugin: type) -> list[str]:
    """Return the arXiv numbers in the docstrings of a decoder's or cache's module and class, in order."""
    module = inspect.getdoc(sys.modules[plugin.__module__]) or ""
    text = f"{module}\n{inspect.getdoc(plugin) or ''}"
    return list(dict.fromkeys(_ARXIV.findall(text)))


def software() -> str:
    """Return the entry of this version of unmask."""
    return _entry(
        "software",
        "unmask",
        {
            "title": "{unmask: a Python engine for masked diffusion language models}",
            "author": "{The unmask authors}",
            "year": RELEASED,
            "version": __version__,
        },
    )


def papers_of(kind: str, name: str, plugin: type) -> str:
    """Return the entries of the papers of a decoder or cache. Raises ConfigError if it names none."""
    numbers = sources_of(plugin)
    if not numbers:
        raise ConfigError(
            f"{kind} {name} names no paper: its docstring has no arXiv number, written arXiv:0000.00000"
        )
    return "\n".join(_paper(number) for number in numbers)


def _paper(number: str) -> str:
    paper = PAPERS.get(number, Paper(f"arxiv{number.replace('.', '')}", f"arXiv:{number}"))
    fields = {"title": f"{{{paper.title}}}"}
    if paper.authors:
        fields["author"] = paper.authors
    fields |= {
        "year": f"20{number[:2]}",
        "eprint": number,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{number}",
    }
    return _entry("misc", paper.key, fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = ",\n".join(f"  {name:<13} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}\n"
