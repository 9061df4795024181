# Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

import platform


def main(context):
    name = context.req.query.get("name", "world")
    context.log(f"Said hello to {name}.")
    return context.res.json(
        {
            "message": f"Hello, {name}!",
            "method": context.req.method,
            "path": context.req.path,
            "runtime": f"python {platform.python_version()}",
        }
    )
