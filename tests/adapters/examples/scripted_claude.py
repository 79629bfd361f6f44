#!/usr/bin/env python3
"""Takes the place of Claude Code: keeps a transcript, and answers how many messages it holds.

It speaks the protocol of the Claude Agent SDK on stdin and stdout, and needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def write(frame: dict[str, Any]) -> None:
    """Send a frame to the SDK."""
    print(json.dumps(frame), flush=True)


class Transcript:
    """The transcript file of one session."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        config = Path(os.environ.get("CLAUDE_CONFIG_DIR", "~/.claude")).expanduser()
        project = re.sub(r"[^a-zA-Z0-9]", "-", str(Path.cwd()))
        self.path = config / "projects" / project / f"{session_id}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.entries: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, role: str, content: Any) -> dict[str, Any]:
        """An entry that follows the last one."""
        entry = {
            "type": role,
            "uuid": str(uuid.uuid4()),
            "parentUuid": self.entries[-1]["uuid"] if self.entries else None,
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "sessionId": self.session_id,
            "message": {"role": role, "content": content},
        }
        self.entries.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return entry

    def mirror(self, entries: list[dict[str, Any]]) -> None:
        """Send entries to the SDK, which appends them to its session store."""
        write({"type": "transcript_mirror", "filePath": str(self.path), "entries": entries})


def answer(transcript: Transcript, prompt: Any) -> None:
    """One turn."""
    asked = transcript.add("user", prompt)
    text = f"The transcript has {len(transcript.entries)} messages."
    blocks = [{"type": "text", "text": text}]
    transcript.mirror([asked, transcript.add("assistant", blocks)])
    name = {"session_id": transcript.session_id, "uuid": str(uuid.uuid4())}
    message = {"role": "assistant", "model": "scripted", "content": blocks}
    write({"type": "assistant", "message": message, "parent_tool_use_id": None, **name})
    numbers = {"duration_ms": 1, "duration_api_ms": 1, "num_turns": 1}
    outcome = {"subtype": "success", "is_error": False, "result": text}
    write({"type": "result", **outcome, **numbers, **name})


def main() -> None:
    """Answer until the SDK closes stdin."""
    resumed = re.search(r"--resume[= ](\S+)", " ".join(sys.argv))
    transcript = Transcript(resumed[1] if resumed else str(uuid.uuid4()))
    for line in sys.stdin:
        frame = json.loads(line)
        if frame["type"] == "control_request":
            response = {"subtype": "success", "request_id": frame["request_id"], "response": {}}
            write({"type": "control_response", "response": response})
            if frame["request"]["subtype"] == "initialize":
                init = {"session_id": transcript.session_id, "claude_code_version": "999.0.0"}
                write({"type": "system", "subtype": "init", **init})
        elif frame["type"] == "user":
            answer(transcript, frame["message"]["content"])


if __name__ == "__main__":
    main()
