#!/usr/bin/env bash
# Everything that docs/scaling.md says of a GPU, the most valuable first, in about 160 s; each result is written as it is found.
#     benchmarks/gpu.sh OUT [SECONDS]    on a GPU, with no command beginning or going on after SECONDS (170)
#     benchmarks/gpu.sh OUT tiny         the same commands at tiny size on a processor, to see that they work
set -u
out=$1 limit=${2:-170}
mkdir -p "$out"
gpu=(--device cuda --batch-seconds 94 --recordings 96 --steps 4 --rounds 3 --workers 8 --microbatches 376 752)
if [ "$limit" = tiny ]; then
    limit=3600 gpu=(--device cpu --batch-seconds 8 --crop-seconds 2 --recordings 12 --steps 1 --rounds 1 --workers 1 --microbatches 4)
fi

run() {  # NAME SECONDS COMMAND...
    local name=$1 left=$((limit - SECONDS)) most=$2
    shift 2
    [ "$left" -gt 5 ] || { echo "$name: no time left"; return; }
    timeout $((left < most || limit == 3600 ? left : most)) "$@" > "$out/$name.txt" 2>&1
    echo "$name: exit $?, until second $SECONDS"
}

step() {  # NAME SECONDS SIZE OPTIONS...
    local name=$1 most=$2 size=$3
    shift 3
    [ "$limit" != 3600 ] || size=tiny
    run "$name" "$most" python benchmarks/training.py "${gpu[@]}" --size "$size" --json "$out/$name.json" "$@"
}

pair=(--cases ours "plain distillation" --groups measures)
step base 80 base "${pair[@]}" microbatches serial --profile "$out/trace-base.json"
step large 40 large "${pair[@]}" --rounds 2
step mini 25 mini "${pair[@]}"
run tests 25 python -m pytest -q -p no:cacheprovider tests/training/test_device.py
step compiled 50 base --groups compiled
tail -n 25 "$out"/*.txt
