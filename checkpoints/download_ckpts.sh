#!/usr/bin/env bash
# Downloads Meta's SAM 2 checkpoints. `download_ckpts.sh --help` says how.
set -euo pipefail
unset CDPATH # with which `cd` may go elsewhere

mirror=${SAM2_CHECKPOINT_URL:-https://dl.fbaipublicfiles.com/segment_anything_2}
sizes=(tiny small base_plus large)

usage() {
  cat <<TXT
Usage: download_ckpts.sh [--to FOLDER] [--dry-run] [NAME...]

Downloads checkpoints, about 3 GB for all eight, into FOLDER (default: the folder of this script).
What is there already is left alone; what was cut off goes on where it stopped.

NAME       a size of SAM 2.1 (${sizes[*]}), a file (sam2_hiera_large, sam2.1_hiera_tiny.pt),
           or a generation (sam2, sam2.1); none means all
--dry-run  print the addresses and download nothing

SAM2_CHECKPOINT_URL names a mirror of $mirror.
TXT
}

fail() {
  printf 'download_ckpts.sh: %s\n' "$*" >&2
  exit 1
}

# The paths on the server, one a line, that an argument stands for.
paths_of() {
  local name=${1%.pt} size
  for size in "${sizes[@]}"; do
    case $name in
      "$size" | "sam2.1_hiera_$size") echo "092824/sam2.1_hiera_$size.pt" && return ;;
      "sam2_hiera_$size") echo "072824/sam2_hiera_$size.pt" && return ;;
    esac
  done
  case $name in
    sam2) printf '072824/sam2_hiera_%s.pt\n' "${sizes[@]}" ;;
    sam2.1) printf '092824/sam2.1_hiera_%s.pt\n' "${sizes[@]}" ;;
    *) fail "no checkpoint is called '$1'; --help lists the names" ;;
  esac
}

fetch() {
  if command -v curl >/dev/null; then
    curl --fail --location --retry 3 --continue-at - --output "$2" "$1"
  elif command -v wget >/dev/null; then
    wget --tries=3 --continue --output-document="$2" "$1"
  else
    fail "needs curl or wget, and neither is installed"
  fi
}

# A checkpoint is a zip archive; a proxy's error page is not.
is_checkpoint() {
  [ "$(head -c 2 "$1")" = PK ]
}

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=no
names=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --to)
      [ $# -gt 1 ] || fail "--to needs a folder"
      folder=$2
      shift
      ;;
    -*) fail "unknown option '$1'; --help lists what there is" ;;
    *) names+=("$1") ;;
  esac
  shift
done
[ ${#names[@]} -gt 0 ] || names=(sam2 sam2.1)

# All names are looked up before the first byte is fetched.
paths=()
for name in "${names[@]}"; do
  found=$(paths_of "$name")
  while read -r path; do paths+=("$path"); done <<<"$found"
done

for path in "${paths[@]}"; do
  if [ "$dry_run" = yes ]; then
    echo "$mirror/$path"
    continue
  fi
  mkdir -p "$folder"
  file=$folder/${path##*/}
  if [ -e "$file" ]; then
    echo "${path##*/} is there already"
    continue
  fi
  echo "Downloading ${path##*/}"
  fetch "$mirror/$path" "$file.part" || fail "could not download $mirror/$path; run the script again to go on"
  if ! is_checkpoint "$file.part"; then
    rm "$file.part"
    fail "what $mirror/$path sent is no checkpoint; is a proxy or a login page in between?"
  fi
  mv "$file.part" "$file"
done
