# In the place of a service on the Internet.
use IO::Socket::INET;

my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1:9999", Listen => 8) or die $!;
while (my $client = $server->accept) {
    my $request = <$client> // "";
    while (defined(my $line = <$client>)) { last if $line eq "\r\n" }
    my $body = $request =~ m{^GET /todos/2 } ? '{"userId":13}' : "{}";
    print $client "HTTP/1.0 200 OK\r\n\r\n$body";
    close $client;
}
