"""Agents that know nothing of Dorado, as texts of scripts: what a user would bring."""

# Asks the model, runs the one tool that it has, and writes the last answer to a file.
MULTIPLIER = """
import json, sys
from openai import OpenAI

client = OpenAI(max_retries=0)
tool = {"type": "function", "function": {"name": "multiply", "description": "a times b", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}}
messages = [{"role": "user", "content": sys.stdin.read().strip()}]
while True:
    said = client.chat.completions.create(model="policy", messages=messages, tools=[tool]).choices[0].message
    messages.append(said.model_dump(exclude_none=True))
    if not said.tool_calls:
        break
    for call in said.tool_calls:
        given = json.loads(call.function.arguments)
        result = str(given["a"] * given["b"])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
open("answer.txt", "w").write(said.content)
print("done:", said.content)
"""

# The same interface without any library: starts in a moment.
PLAIN = """
import json, os, sys, urllib.request

def ask(text):
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {
        "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as got:
        return json.load(got)["choices"][0]["message"]["content"]
"""
