#!/usr/bin/env bash
# Correctness, speed and memory on a GPU, in under ten minutes on an H200.
#
#   kernels/benchmarks/gpu.sh [OUT]     results go to OUT (benchmarks/results)
#   REHEARSE=1 kernels/benchmarks/gpu.sh   the same on a CPU, tiny: about
#       three minutes; needs PYTHON= where python3 has no torch
#
#   PYTHON    interpreter (python3)      BACKEND  of the op (triton)
#   PARTS     some of the parts          SEED     of all inputs (drawn)
#   COMMIT    where there is no .git     NCU=1    also run Nsight Compute
#   TOTAL     seconds for all (580)      BUDGETS  'op1d=200 ...', of parts
#
# Each part is a process of its own and stops starting rows in time; one that
# fails leaves the others alone, and the exit status is then 1.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/kernels/benchmarks
python=${PYTHON:-python3}
parts=${PARTS:-check op2d op1d models graphs profile sanitize}
options=(--backend "${BACKEND:-triton}")
out=$root/benchmarks/results
if [[ ${REHEARSE:-0} == 1 ]]; then
  options=(--backend "${BACKEND:-torch}" --device cpu --tiny --repeats 3
    --least 0.001)
  out=$root/work_dirs/gpu_rehearsal # never mistaken for a measurement
fi
out=${1:-${OUT:-$out}}
commit=${COMMIT:-$(git -C "$root" rev-parse HEAD 2> /dev/null || true)}
[[ -z $commit ]] || options+=(--commit "$commit")
options+=(--seed "${SEED:-$((RANDOM * 32768 + RANDOM))}") # one for all parts
export PYTHONUNBUFFERED=1

# Seconds after which a part starts no further row; half as many again is its
# end, and `total` that of all.
total=${TOTAL:-580}
declare -A budget=([check]=60 [op2d]=110 [op1d]=130 [models]=90 [graphs]=25
  [profile]=25 [sanitize]=50)

for pair in ${BUDGETS:-}; do
  budget[${pair%%=*}]=${pair#*=}
done

status=0
for part in $parts; do
  seconds=${budget[$part]:-60}
  begin=$SECONDS
  hard=$((seconds * 3 / 2))
  ((hard <= total - begin)) || hard=$((total - begin))
  if ((hard < 15)); then
    echo "== $part left out: the $total s are used up"
    status=1
    continue
  fi
  echo "== $part"
  timeout -k 5 "$hard" \
    "$python" "$here/gpu.py" --parts "$part" --out "$out" \
    --budget "$seconds" "${options[@]}" || {
    echo "== $part failed with status $?"
    status=1
  }
  echo "== $part took $((SECONDS - begin)) s"
done
"$python" "$here/gpu.py" --parts summary --out "$out" || status=1
if "$python" -c 'import matplotlib' 2> /dev/null; then
  "$python" "$here/plots.py" --results "$out" || status=1
else
  echo 'no plots: matplotlib is not installed here; later run' \
    'python kernels/benchmarks/plots.py'
fi
echo "== $SECONDS s in all; results in $out"
exit "$status"
