#!/usr/bin/env bash
# Other projects' clients, then our own, against `unmask serve demo`, from nothing to a table. Exit status 1
# when a client failed. What came out when this was last run is in clients.md.
#
#   benchmarks/clients.sh [FOLDER]
#
# FOLDER keeps the environments (6 GB), logs and results, and a later run uses the environments again. Without
# it a temporary folder is used and removed. The network is needed for pip alone.
#
#   PYTHON       makes the environments, 3.11 or newer (default: python3)
#   PIP_OPTIONS  more options of pip install; "--extra-index-url https://download.pytorch.org/whl/cpu" avoids
#                PyTorch's CUDA build on Linux
#   UNMASK_DATA  folder with gsm8k/test.jsonl and mmlu/test/*.csv for the exams; default: the bundled model's
#                own word problems, and sums with four choices
#   QUESTIONS    how many of each exam (default: 8)
set -uo pipefail

OPENAI=3.57.0 SGLANG=0.5.6 VLLM=0.33.0 GUIDELLM=0.8.1 LM_EVAL=0.4.13
LANGCHAIN=1.7.4 LLAMA_INDEX=0.8.1 LITELLM=1.110.2 INSTRUCTOR=1.17.0
TORCH=torch==2.13.0
TOKENIZING=(transformers==5.20.2 aiohttp==3.14.5 numpy==2.4.6 requests==2.34.2 tqdm==4.70.1 pillow==13.0.0
  pybase64==1.5.1)
# what `vllm.benchmarks.serve` imports, found by running it; the wheel's own list is of 60 packages, CUDA among them
VLLM_NEEDS=(msgspec==0.22.0 cbor2==6.3.0 psutil==7.2.2 pyzmq==27.3.0 oss-harmony==0.0.11 openai=="$OPENAI"
  cachetools==8.0.2 cloudpickle==3.1.3 uvloop==0.23.0 py-cpuinfo==9.0.0 prometheus_client==0.26.0 xgrammar==0.2.8
  fastapi==0.165.0 partial-json-parser==0.2.1.1.post7 llguidance==1.7.6 einops==0.8.2)

repo=$(cd "$(dirname "$0")/.." && pwd)
tools=$repo/benchmarks/clients
python=${PYTHON:-python3}
questions=${QUESTIONS:-8}
read -r -a pip_options <<<"${PIP_OPTIONS:-}"
unset PYTHONPATH
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PIP_DISABLE_PIP_VERSION_CHECK=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
  echo "usage: benchmarks/clients.sh [FOLDER]" >&2
  exit 2
fi
is_kept=${1:+yes}
if [ -n "$is_kept" ]; then
  mkdir -p "$1" && home=$(cd "$1" && pwd) || exit 2
else
  home=$(mktemp -d "${TMPDIR:-/tmp}/unmask-clients.XXXXXX") || exit 2
fi
out=$home/out
rm -rf "$out"
mkdir -p "$out" "$home/env" || exit 2

server="" running=""
stop_server() { # its exit status; 0 where none runs
  [ -n "$server" ] || return 0
  local pid=$server code=0
  server=""
  kill -TERM "$pid" 2>/dev/null
  for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null && sleep 0.5; done
  kill -KILL "$pid" 2>/dev/null
  wait "$pid" || code=$?
  return "$code"
}
clean_up() {
  [ -z "$running" ] || kill -TERM "$running" 2>/dev/null
  stop_server
  [ -n "$is_kept" ] || rm -rf "$home"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

environment() { # name, packages...: a virtual environment with them, made again when the list changes
  local where=$home/env/$1 stamp
  stamp=$where/.has-$(printf '%s\n' "$@" | cksum | cut -d ' ' -f 1)
  [ -e "$stamp" ] && return
  echo "==> environment $1: ${*:2}"
  rm -rf "$where"
  "$python" -m venv "$where" && install "$where" "${@:2}" && touch "$stamp"
}
install() { # environment, arguments of pip install...
  "$1/bin/python" -m pip install -q ${pip_options[@]+"${pip_options[@]}"} "${@:2}" >>"$out/pip.log" 2>&1 || {
    tail -n 5 "$out/pip.log" >&2
    return 1
  }
}
unpacked() { # wheel's name, version: its Python files, without what it needs
  local where=$home/env/$1-$2
  [ -e "$where/.done" ] && return
  echo "==> unpacking $1 $2"
  "$python" -m pip download -q --no-deps "$1==$2" -d "$where" >>"$out/pip.log" 2>&1 &&
    "$python" - "$where" <<'PY' && touch "$where/.done"
import sys, zipfile
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as packed:
    names = [name for name in packed.namelist() if not name.endswith((".so", ".cubin", ".bin"))]
    packed.extractall(sys.argv[1], names)
wheel.unlink()
PY
}

rows=() failures=0
row() { rows+=("$(printf '| %-38s | %8s | %6s | %7s | %4s |' "$@")"); }
client() { # name, kind of result, result, command...: runs it and notes how it went
  local name=$1 kind=$2 result=$3 code=0 before after counts log
  log=$out/$(tr -c 'a-z0-9\n' - <<<"${name,,}").log
  before=$("$unmask" "$tools/results.py" refused "$url")
  echo "==> $name"
  "${@:4}" >"$log" 2>&1 & # not in front, where a signal to this script would wait for its end
  running=$!
  wait "$running" || code=$?
  running=""
  [ "$code" -eq 0 ] || tail -n 15 "$log" >&2
  after=$("$unmask" "$tools/results.py" refused "$url")
  counts=$("$unmask" "$tools/results.py" counts "$kind" "$result") || counts="? ?"
  if [ "$code" -ne 0 ] || [ "${counts#* }" != 0 ] || [ -z "$after" ] || [ "$after" != "$before" ]; then
    failures=$((failures + 1))
  fi
  row "$name" "${counts% *}" "${counts#* }" "$((after - before))" "$code"
}
into() { exec "${@:2}" >"$1"; }
not_installed() { # name
  failures=$((failures + 1))
  row "$1 (not installed)" - - - -
}

environment unmask "$TORCH" || exit 1
# the tree as it is now, whatever the environment had
install "$home/env/unmask" -c "$repo/constraints.txt" "${repo}[serve,bench]" &&
  install "$home/env/unmask" --force-reinstall --no-deps "$repo" || exit 1
unmask=$home/env/unmask/bin/python
bundled=$(cd "$home" && "$unmask" -c 'import unmask; print(unmask.__path__[0])')/demo/model
"$unmask" "$tools/data.py" "$out" ${UNMASK_DATA:+"$UNMASK_DATA"} || exit 1

cd "$out" || exit 1
"$unmask" -m unmask.cli.main serve demo --port 0 --decoder threshold >server.log 2>&1 &
server=$!
for _ in $(seq 240); do
  grep -q '^ready' server.log && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.5
done
url=$(sed -n 's/^url *//p' server.log)
if ! grep -q '^ready' server.log || [ -z "$url" ]; then
  cat server.log >&2
  exit 1
fi
echo "==> serving demo at $url"

name="openai $OPENAI"
if environment sdk "openai==$OPENAI"; then
  client "$name" sdk sdk.json "$home/env/sdk/bin/python" "$tools/sdk.py" "$url" sdk.json
else not_installed "$name"; fi

framework() { # name, version, package, more packages...
  local title="$1 $2"
  if environment "$1" "$3==$2" "${@:4}"; then
    # litellm would fetch a table of prices
    client "$title" sdk "$1.json" env LITELLM_LOCAL_MODEL_COST_MAP=True \
      "$home/env/$1/bin/python" "$tools/frameworks.py" "$1" "$url" "$1.json"
  else not_installed "$title"; fi
}
framework langchain "$LANGCHAIN" langchain-openai langchain
framework llama-index "$LLAMA_INDEX" llama-index-llms-openai-like
framework litellm "$LITELLM" litellm
framework instructor "$INSTRUCTOR" instructor

name="SGLang $SGLANG bench_serving"
random=(--num-prompts 10 --random-input-len 64 --random-output-len 64 --random-range-ratio 0.5 --seed 1)
if environment sglang "${TOKENIZING[@]}" datasets==5.2.0 && unpacked sglang "$SGLANG"; then
  # as a script: as a module it wants the whole package
  cp "$home/env/sglang-$SGLANG/sglang/bench_serving.py" .
  sglang=("$home/env/sglang/bin/python" bench_serving.py --base-url "$url" --model "$bundled"
    --served-model-name demo --output-details --disable-tqdm)
  for backend in sglang sglang-oai sglang-oai-chat; do
    client "$name, $backend" sglang "$backend.jsonl" "${sglang[@]}" --backend "$backend" \
      --dataset-name random-ids "${random[@]}" --output-file "$backend.jsonl"
  done
  client "$name, sharegpt" sglang sharegpt.jsonl "${sglang[@]}" --backend sglang --disable-ignore-eos \
    --dataset-name sharegpt --dataset-path sharegpt.json --num-prompts 16 --output-file sharegpt.jsonl
  client "$name, not streamed" sglang whole.jsonl "${sglang[@]}" --backend sglang --disable-stream \
    --dataset-name random-ids "${random[@]}" --output-file whole.jsonl
else not_installed "$name"; fi

name="vLLM $VLLM bench serve"
if environment vllm "$TORCH" "${TOKENIZING[@]}" "${VLLM_NEEDS[@]}" && unpacked vllm "$VLLM"; then
  for route in openai:/v1/completions openai-chat:/v1/chat/completions; do
    client "$name, ${route%%:*}" vllm "vllm-${route%%:*}.json" \
      env PYTHONPATH="$home/env/vllm-$VLLM" "$home/env/vllm/bin/python" -c '
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())' --backend "${route%%:*}" --base-url "$url" --endpoint "${route#*:}" --model demo \
      --tokenizer "$bundled" --dataset-name random --random-input-len 64 --random-output-len 32 \
      --num-prompts 8 --disable-tqdm --save-result --result-dir . --result-filename "vllm-${route%%:*}.json"
  done
else not_installed "$name"; fi

name="guidellm $GUIDELLM"
if environment guidellm "$TORCH" "guidellm==$GUIDELLM"; then
  client "$name" guidellm guidellm.json "$home/env/guidellm/bin/python" -m guidellm run \
    --backend "kind=openai_http,target=$url,model=demo" --profile kind=concurrent,streams=2 \
    --constraint kind=max_requests,count=8 --tokenizer "kind=huggingface_auto,model=$bundled" \
    --data kind=synthetic_text,prompt_tokens=48,output_tokens=32 --output kind=json,path=guidellm.json \
    --disable-progress
else not_installed "$name"; fi

name="lm-eval $LM_EVAL"
if environment lm-eval "lm_eval[api]==$LM_EVAL" transformers==5.20.2; then
  for route in local-completions:/v1/completions local-chat-completions:/v1/chat/completions; do
    # in completions the client sends the token ids of the chat template, in chat the messages
    ids=True
    [ "${route%%:*}" = local-completions ] || ids=False
    client "$name, ${route%%:*}" lm-eval "${route%%:*}" "$home/env/lm-eval/bin/python" -m lm_eval run \
      --model "${route%%:*}" --tasks words --include_path . --limit "$questions" --apply_chat_template \
      --model_args "model=demo,base_url=$url${route#*:},tokenizer=$bundled,tokenized_requests=$ids,num_concurrent=4,max_length=1024" \
      --output_path "${route%%:*}" --log_samples
  done
else not_installed "$name"; fi

name="unmask bench"
bench=("$unmask" -m unmask.cli.main bench)
for backend in sglang sglang-oai sglang-oai-chat; do
  client "$name serve, $backend" unmask "unmask-$backend.jsonl" "${bench[@]}" serve --base-url "$url" \
    --backend "$backend" --dataset-name random-ids "${random[@]}" --output-file "unmask-$backend.jsonl"
done
client "$name serve, sharegpt" unmask unmask-sharegpt.jsonl "${bench[@]}" serve --base-url "$url" \
  --backend sglang --disable-ignore-eos --dataset-name sharegpt --dataset-path sharegpt.json --num-prompts 16 \
  --output-file unmask-sharegpt.jsonl
for exam in gsm8k mmlu; do
  data=gsm8k.jsonl
  [ "$exam" = gsm8k ] || data=mmlu
  client "$name $exam" unmask "unmask-$exam.json" into "unmask-$exam.json" "${bench[@]}" "$exam" \
    --base-url "$url" --data "$data" --num-questions "$questions" --max-new-tokens 64 --json
done

code=0
stop_server || code=$?
[ "$code" -eq 0 ] || failures=$((failures + 1))
row "unmask serve, told to stop" - - - "$code"
if grep -nE 'WARN|ERROR|Traceback' server.log; then
  echo "the server's log has warnings or errors (above)"
  failures=$((failures + 1))
fi

echo
echo "| client                                 | requests | failed | refused | exit |"
echo "|----------------------------------------|----------|--------|---------|------|"
printf '%s\n' "${rows[@]}"
echo
echo "| backend | row | SGLang's client | unmask bench serve | |"
echo "|---|---|---|---|---|"
for backend in sglang sglang-oai sglang-oai-chat sharegpt; do
  [ -e "$backend.jsonl" ] && "$unmask" "$tools/results.py" compare "$backend.jsonl" "unmask-$backend.jsonl"
done
echo
echo "$failures failed"
[ "$failures" -eq 0 ]
