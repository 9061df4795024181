import json
import os

import requests


def main(context):
    id = json.loads(context.req.body_text or "{}").get("id", 1)
    todo = requests.get(f"{os.environ['TODO_URL']}/{id}").json()
    context.log("Sample Log")
    return context.res.json(
        {
            "isTest": True,
            "message": "Hello Open Runtimes 👋",
            "url": context.req.url,
            "variable": os.environ.get("TEST_VARIABLE"),
            "todo": todo,
        }
    )
