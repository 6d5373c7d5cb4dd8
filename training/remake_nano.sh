#!/usr/bin/env bash
# Trains the embedded model again, as it was made. `training/remake_nano.sh --help` says how.
set -euo pipefail
unset CDPATH # with which `cd` may go elsewhere

usage() {
  cat <<TXT
Usage: training/remake_nano.sh [FOLDER] [KEY=VALUE...]

Trains checkpoints/sam2.1_hiera_nano.pt again, part after part, each from what the one before it made, into FOLDER
(default: outputs/remade); halfway between the last two parts' weights are those of the embedded model, in
FOLDER/model.pt. Ctrl-C stops it, and the same command goes on where it was stopped. The first part was an earlier
program's: its weights are taken from the history, so this runs from a full clone. The third part asks for a GPU of
80 GB, the others for two CPU cores that compute in bfloat16; FOLDER may be carried from one machine to another.

KEY=VALUE  changes every part's recipe. A trial, which wants a FOLDER of its own:
           validation.every=0 "stages=[{steps: 1, frames: 2, clips: 1, lr: 1e-6, lr_end: 1e-6}]"
TXT
}

fail() {
  printf 'remake_nano.sh: %s\n' "$*" >&2
  exit 1
}

first_weights=66632cc:checkpoints/sam2.1_hiera_nano.pt

out=
changes=()
for argument in "$@"; do
  key=${argument%%=*}
  case $argument in
    -h | --help) usage && exit ;;
    -*) fail "no option is called '$argument'; --help lists what there is" ;;
  esac
  if [ "$key" != "$argument" ] && [ "$key" = "${key%%/*}" ]; then
    changes+=("$argument")
  elif [ -z "$out" ]; then
    out=$argument
  else
    fail "takes one FOLDER, got '$out' and '$argument'"
  fi
done
out=${out:-outputs/remade}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

weights=$out/first_part.pt
if [ ! -e "$weights" ]; then
  git show "$first_weights" >"$weights.part" || fail "could not take $first_weights from the history: needs git and a full clone"
  mv "$weights.part" "$weights"
fi

# part NAME RECIPE PROCESSES [KEY=VALUE...]: trains on from $weights, and makes its own weights the next part's.
part() {
  local folder=$out/$1 recipe=configs/training/$2 launch=(python -m) arguments
  [ "$3" = 1 ] || launch+=(torch.distributed.run --standalone --nproc-per-node "$3" -m)
  arguments=("$recipe" --output "$folder" "init_from=$weights" "${@:4}" ${changes[@]+"${changes[@]}"})
  [ ! -e "$folder/resume.pt" ] || arguments+=(--resume)
  echo "remake_nano.sh: $1, by $recipe"
  "${launch[@]}" training.train "${arguments[@]}"
  weights=$folder/model.pt
}

part second_part nano_cpu.yaml 2 device=cpu positional_heads=4
part third_part nano.yaml 1 device=cuda
part fourth_part nano_last.yaml 2 device=cpu
part fifth_part nano_sizes.yaml 2 device=cpu
part sixth_part nano_regions.yaml 2 device=cpu
sixth=$weights
part seventh_part nano_strings.yaml 2 device=cpu
python -m training.mix "$sixth" "$weights" --output "$out/model.pt"
