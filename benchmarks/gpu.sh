#!/usr/bin/env bash
# Is the op right on a GPU, and how fast? Under eight minutes on an H100.
#
#   benchmarks/gpu.sh               results under OUT (benchmarks/results)
#   PARTS=check benchmarks/gpu.sh   some of the parts; the others stay
#   REHEARSE=1 benchmarks/gpu.sh    tiny, on a CPU: a few minutes
#
#   PYTHON  interpreter (python3), with torch, triton, timm and mmengine
#   COMMIT  the commit, where there is no .git
#   SEED    of all inputs (drawn)
#
# Each part is a process of its own and is cut off in time; what it measured
# until then stays. If one fails the others run, and the status is then 1.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=("${PYTHON:-python3}")
export PYTHONPATH=$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
options=(--device cuda --seed "${SEED:-$RANDOM}")
slack=1
check=()
if [[ ${REHEARSE:-0} == 1 ]]; then
  OUT=${OUT:-$root/work_dirs/gpu_rehearsal} # never taken for a measurement
  options=(--device cpu --seed 0 --quick --backend torch)
  slack=5
  check=(--backend triton)    # the kernels themselves,
  export TRITON_INTERPRET=1   # run in Python
fi
out=${OUT:-$here/results}
mkdir -p "$out"

# One part: its name, the most seconds it may take, the command.
part() {
  [[ " ${PARTS:-$1} " == *" $1 "* ]] || return 0
  local begin=$SECONDS
  echo "== $1"
  if timeout -k 5 $(($2 * slack)) \
    "${python[@]}" "$here/$3" "${options[@]}" "${@:4}"; then
    echo "== $1 took $((SECONDS - begin)) s"
  else
    echo "== $1 FAILED with status $? after $((SECONDS - begin)) s"
    failed=1
  fi
}

failed=0
op=(ops.py --out "$out/op_gpu.json" --parts)
part check 115 "${op[@]}" check "${check[@]}"
part op2d 85 "${op[@]}" machine op2d
part op1d 95 "${op[@]}" op1d
part models 70 backbones.py --out "$out/backbone_gpu.json" --parts gpu
part kernels 30 "${op[@]}" kernels
if [[ ${REHEARSE:-0} == 0 ]]; then
  # The small checks again, each tensor an allocation of its own, so that a
  # step beyond one is seen.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  tool=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  for kind in memcheck racecheck; do
    python=("${tool:-compute-sanitizer}" --tool $kind --error-exitcode 9
      "${PYTHON:-python3}")
    part sanitize 40 ops.py --quick --parts check
  done
fi
echo "== $SECONDS s in all; results in $out"
exit "$failed"
