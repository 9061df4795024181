module.exports = ({ req, res, log }) => {
    const line = 'A'.repeat(1023);
    for (let n = 0; n < 1024 * Number(req.bodyText); n++) {
        log(line);
    }
    return res.text('OK');
};
