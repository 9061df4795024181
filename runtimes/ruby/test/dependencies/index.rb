# frozen_string_literal: true

# Says what a gem says that the build fetches.
require "greeting"

def main(context)
  context.res.text(Greeting::TEXT)
end
