#!/usr/bin/env bash
# scripts/demo, with the binary of this build (MOECTL): the streamed answer is 541, its reasoning apart, and nothing is
# left running.
set -euo pipefail

output=$(scripts/demo --once)
echo "$output"
grep -qE '^Reasoning: *[^ ]' <<<"$output"
grep -qE '^Answer: .*\b541\b' <<<"$output"
grep -qE 'tokens/s$' <<<"$output"
