module.exports = ({ res }) => res.binary(Buffer.from([0, 10, 255]));
