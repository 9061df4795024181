<?php

// What a function prints goes to the log of the execution it was printed in. A process runs one execution at a time.

declare(strict_types=1);

namespace Runtime;

final class Native
{
    public static ?Logger $current = null;

    /** Redirects the output of this process, for good; outside an execution it is printed as ever. */
    public static function capture(): void
    {
        ini_set('display_errors', '1');
        ini_set('html_errors', '0');
        ini_set('log_errors', '0');
        ob_start(self::write(...), chunk_size: 1, flags: 0);
    }

    /** Ends the buffers that the function has left open. */
    public static function settle(): void
    {
        while (ob_get_level() > 1 && @ob_end_flush());
    }

    private static function write(string $text): string
    {
        if (self::$current === null) {
            return $text;
        }
        self::$current->native($text);
        return '';
    }
}
