# frozen_string_literal: true

# Says hello and tells what it was asked: `curl http://localhost:3000/anything?name=you`.

def main(context)
  name = context.req.query.fetch("name", "world")
  context.log("Said hello to #{name}.")
  context.res.json({
    message: "Hello, #{name}!",
    method: context.req.method,
    path: context.req.path,
    runtime: "ruby #{RUBY_VERSION}"
  })
end
