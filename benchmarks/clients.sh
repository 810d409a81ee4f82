#!/usr/bin/env bash
# Other projects' clients against a running `unmask serve`. Each runs where it is found and is skipped, with
# the reason, where not. What came out when this was written is in clients.md.
#
#   benchmarks/clients.sh [URL]           default: http://127.0.0.1:8000, model demo
#
#   PYTHON     a Python with unmask and the clients' dependencies (default: .venv/bin/python)
#   TOKENIZER  folder of the model's tokenizer (default: the bundled one)
#   SGLANG     folder of an unpacked sglang 0.5.6 wheel   pip download --no-deps sglang==0.5.6
#   VLLM       folder of an unpacked vllm wheel           pip download --no-deps vllm==0.33.0
#   GUIDELLM   the command guidellm of 0.8.1              pip install guidellm==0.8.1
#
# Further packages: SGLang's client wants pybase64, pillow, requests, datasets; vLLM's msgspec, cachetools,
# openai_harmony, xgrammar, llguidance, partial_json_parser, einops...; lm_eval tenacity and tiktoken.
set -uo pipefail
cd "$(dirname "$0")/.."

url=${1:-http://127.0.0.1:8000}
python=${PYTHON:-.venv/bin/python}
tokenizer=${TOKENIZER:-$PWD/src/unmask/demo/model}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failures=0

if ! curl -sf --max-time 10 "$url/health" >/dev/null; then
  echo "error: no server answers at $url; start one with: unmask serve demo" >&2
  exit 2
fi

run() { # name, command...: its last lines, and whether it went well
  local name=$1
  shift
  echo "== $name"
  if "$@" >"$scratch/log" 2>&1; then
    grep -E "Successful|Failed requests|Accept length|TTFT|Denoising|exact_match|Benchmarking complete|^answer" "$scratch/log" | head -12
  else
    tail -5 "$scratch/log"
    failures=$((failures + 1))
  fi
  # vLLM's and SGLang's clients end well even when requests fail
  if grep -qE "Failed requests: +[1-9]" "$scratch/log"; then failures=$((failures + 1)); fi
}

skip() { echo "== $1: skipped, $2"; }
host=${url#*://}

run "openai SDK" "$python" - "$url" <<'PY'
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
(model,) = [item.id for item in client.models.list()]
messages = [{"role": "user", "content": "Anna has 7 eggs. She buys 5 more. How many has she?"}]
asked = {"model": model, "messages": messages, "max_tokens": 48, "seed": 0}
whole = client.chat.completions.create(**asked).choices[0].message.content
pieces = client.chat.completions.create(**asked, stream=True)
text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
assert text == whole, (text, whole)
print("answer", repr(whole))
PY

if [ -f "${SGLANG:-}/sglang/bench_serving.py" ]; then
  cp "$SGLANG/sglang/bench_serving.py" "$scratch/" # as a script: as a module it wants the whole package
  for backend in sglang sglang-oai sglang-oai-chat; do
    run "SGLang bench_serving, $backend" "$python" "$scratch/bench_serving.py" --backend "$backend" \
      --host "${host%%:*}" --port "${host##*:}" --dataset-name random-ids --tokenizer "$tokenizer" \
      --num-prompts 10 --random-input-len 64 --random-output-len 64 --random-range-ratio 0.5 \
      --output-file "$scratch/out.jsonl" --disable-tqdm
  done
else
  skip "SGLang bench_serving" "SGLANG is no folder of its wheel"
fi

if [ -f "${VLLM:-}/vllm/benchmarks/serve.py" ]; then
  for route in openai:/v1/completions openai-chat:/v1/chat/completions; do
    PYTHONPATH=$VLLM run "vLLM bench serve, ${route%%:*}" "$python" -c '
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())' --backend "${route%%:*}" --base-url "$url" --endpoint "${route#*:}" --model demo \
      --tokenizer "$tokenizer" --dataset-name random --random-input-len 64 --random-output-len 32 \
      --num-prompts 4 --disable-tqdm
  done
else
  skip "vLLM bench serve" "VLLM is no folder of its wheel"
fi

if [ -x "${GUIDELLM:-}" ]; then
  run "guidellm" "$GUIDELLM" run --backend "kind=openai_http,target=$url,model=demo" \
    --profile kind=concurrent,streams=2 --constraint kind=max_requests,count=4 \
    --tokenizer "kind=huggingface_auto,model=$tokenizer" \
    --data kind=synthetic_text,prompt_tokens=48,output_tokens=32 \
    --output "kind=json,path=$scratch/guidellm.json" --disable-progress
else
  skip "guidellm" "GUIDELLM is no command"
fi

if "$python" -c 'import lm_eval, tenacity, tiktoken' 2>/dev/null; then
  printf '{"question": "%s", "answer": "12"}\n' "Anna has 7 eggs. She buys 5 more. How many has she?" \
    >"$scratch/one.jsonl"
  cat >"$scratch/one.yaml" <<YAML
task: one
dataset_path: json
dataset_kwargs: {data_files: {test: $scratch/one.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Question:"], max_gen_toks: 48, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
YAML
  run "lm-eval, local-completions" "$python" -m lm_eval run --model local-completions --model_args \
    "model=demo,base_url=$url/v1/completions,tokenizer=$tokenizer,max_length=1024,tokenized_requests=False" \
    --tasks one --include_path "$scratch"
else
  skip "lm-eval" "it, tenacity or tiktoken is not installed"
fi

echo "== $failures failed"
[ "$failures" -eq 0 ]
