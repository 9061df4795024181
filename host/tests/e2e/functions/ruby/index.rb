# frozen_string_literal: true

require "json"
require "net/http"

def main(context)
  text = context.req.body_text
  id = text.empty? ? "1" : JSON.parse(text).fetch("id", "1")
  todo = JSON.parse(Net::HTTP.get(URI("#{ENV.fetch("TODO_URL")}/#{id}")))
  context.log("Sample Log")
  context.res.json({
    isTest: true,
    message: "Hello Open Runtimes 👋",
    url: context.req.url,
    variable: ENV.fetch("TEST_VARIABLE", nil),
    todo: todo
  })
end
