# Gems go where the server looks for them.
export BUNDLE_PATH=vendor/bundle BUNDLE_SILENCE_ROOT_WARNING=1
