"""Runs a command that prints a streamed chat completion (server-sent events) and shows it: the reasoning apart from the
answer, then the speed.

    show_stream.py curl --no-buffer URL ...

Fails when the stream reports an error, ends early, or holds no answer.
"""
import json
import subprocess
import sys
import time

COLOR = sys.stdout.isatty()
LABELS = {"reasoning_content": "Reasoning: ", "content": "Answer:    "}


def main():
    started = first = time.monotonic()
    command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
    shown = dict.fromkeys(LABELS, "")
    usage, done = None, False
    for line in command.stdout:
        if not line.startswith("data:"):
            if line.lstrip().startswith("{"):
                sys.exit(f"the server refused the request: {line.strip()}")
            continue
        data = line[len("data:"):].strip()
        if data == "[DONE]":
            done = True
            continue
        event = json.loads(data)
        if "error" in event:
            sys.exit(f"the server reports: {event['error'].get('message')}")
        usage = event.get("usage") or usage
        for choice in event.get("choices", []):
            for field, label in LABELS.items():
                piece = choice["delta"].get(field) or ""
                if field == "content" and not shown["content"]:
                    piece = piece.lstrip()
                if not piece:
                    continue
                if not any(shown.values()):
                    first = time.monotonic()
                if not shown[field]:
                    sys.stdout.write(("\n" if any(shown.values()) else "") + label)
                shown[field] += piece
                dim = COLOR and field == "reasoning_content"
                sys.stdout.write(f"\033[2m{piece}\033[0m" if dim else piece)
                sys.stdout.flush()
    print()
    if command.wait() != 0 or not done or not shown["content"]:
        sys.exit("the stream ended before the answer was complete")
    seconds = max(time.monotonic() - first, 1e-6)
    if usage and usage["completion_tokens"] > 1:
        tokens = usage["completion_tokens"]
        print(f"\n{tokens} tokens, first after {1000 * (first - started):.0f} ms, then {(tokens - 1) / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main()
